"""Models that hold iterators in their attributes, and take values from them in forward."""

from __future__ import annotations

import itertools
from collections import deque

import pytest
import torch
from torch import nn

import fxprune

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _numbers():
    yield from map(float, range(1, 500))


class _Scaled(nn.Module):
    """A model that multiplies its result by the next value of an iterator."""

    def __init__(self, held, taken=lambda held: next(held)):
        super().__init__()
        self.a = nn.Linear(6, 16, dtype=torch.float64)
        self.c = nn.Linear(16, 4, dtype=torch.float64)
        self.held, self.taken = held, taken

    def forward(self, x):
        return self.c(self.a(x).relu()) * self.taken(self.held)


NOT_COPIED = {
    "generator": (_numbers, next, "held, of type generator"),
    "list": (lambda: {"all": [_numbers()]}, lambda held: next(held["all"][0]), "held['all'][0], of type generator"),
    "map": (lambda: map(float, _numbers()), next, "held, of type generator"),
    "chain": (lambda: itertools.chain(_numbers(), _numbers()), next, "held, of type generator"),
    "pairwise": (lambda: itertools.pairwise(_numbers()), lambda held: next(held)[0], "held, of type pairwise"),
    "function": (lambda: iter(itertools.count(1.0).__next__, 0), next, "held, of type callable_iterator"),
}


@pytest.mark.parametrize("kind", NOT_COPIED)
@pytest.mark.parametrize("call", [fxprune.analyze, lambda model, x: fxprune.transform(model, x, ratio=0.5)])
def test_iterators_without_a_copy_are_named_and_stay_as_they_are(kind, call):
    make, taken, place = NOT_COPIED[kind]
    model = _Scaled(make(), taken)
    with pytest.raises(fxprune.CaptureError, match="an iterator that cannot be copied") as caught:
        call(model, X)
    assert f"at   {place}" in str(caught.value)
    assert "do   hold an object of a class of your own instead" in str(caught.value)
    assert taken(model.held) == 1


COPIED = {
    "dict": lambda: iter({float(number): None for number in range(1, 500)}),
    "set": lambda: iter({float(number) for number in range(1, 500)}),
    "deque": lambda: iter(deque(map(float, range(1, 500)))),
    "map": lambda: map(max, range(1, 500), range(1, 500)),
}


@pytest.mark.parametrize("kind", COPIED)
def test_iterators_with_a_copy_go_on_in_both_models_from_where_they_are(kind):
    model, reference = _Scaled(COPIED[kind]()), list(COPIED[kind]())
    small = fxprune.transform(model, X, ratio=0.5)
    assert type(small) is _Scaled
    assert [next(small.held), next(small.held)] == reference[:2]
    assert next(model.held) == reference[0]


def test_an_iterator_that_forward_does_not_read_is_held_by_the_original_alone():
    model = _Scaled(_numbers(), lambda held: 1)
    with pytest.warns(fxprune.ClassLostWarning, match="held, of type generator"):
        fxprune.transform(model, X, ratio=0.5)
    assert next(model.held) == 1
