"""Models with locks, Python modules and generators in their attributes."""

from __future__ import annotations

import dataclasses
import math
import queue
import threading

import pytest
import torch
from torch import nn

import fxprune

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class _Two(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.a = nn.Linear(6, 16, dtype=torch.float64)
        self.c = nn.Linear(16, 4, dtype=torch.float64)
        vars(self).update(attributes)

    def forward(self, x):
        return self.c(self.a(x).relu())


def test_a_model_with_a_lock_and_a_python_module_keeps_its_class():
    model = _Two(lock=threading.Lock(), tools={"math": math}, condition=threading.Condition())
    model.a.queue = queue.Queue()
    small = fxprune.transform(model, X, ratio=0.5)
    removed = fxprune.record(small).removed
    assert type(small) is _Two
    assert small.a.out_features == 8
    assert small.tools["math"] is math
    reference = fxprune.masked(model, removed)
    assert (small(X) - reference(X)).abs().max() < 1e-12
    assert fxprune.record(small).reasons[:2] == (
        "lock is a new lock in the small model: one of Python's threads cannot be copied",
        "tools['math'] is the Python module math in the small model too",
    )
    for copied in (
        small,
        reference,
        fxprune.repair(small, model, [torch.randn(30, 6, dtype=torch.float64)], progress=False),
    ):
        with model.lock, model.condition:
            assert copied.lock.acquire(blocking=False)
            assert copied.condition.acquire(blocking=False)
        copied.condition.notify()
        copied.a.queue.put(1, block=False)
        assert copied.a.queue.get(timeout=1) == 1


def test_a_class_that_cannot_be_kept_is_told_and_not_advised():
    model = _Two(batches=(number for number in range(3)))
    told = (
        'no _Two, although `prefer="class"` asks for one: _Two cannot be copied; batches, of type generator; TypeError'
    )
    with pytest.warns(fxprune.ClassLostWarning, match=told) as caught:
        fxprune.transform(model, X, ratio=0.5, prefer="class")
    assert "With `prefer" not in str(caught[0].message)
    with pytest.warns(fxprune.ClassLostWarning, match="no _Two: _Two cannot be copied") as caught:
        fxprune.transform(model, X, ratio=0.5)
    assert "With `prefer" not in str(caught[0].message)
    with pytest.raises(fxprune.PlanError, match=r"_Two cannot be copied\n  at   batches, of type generator"):
        fxprune.masked(model, {})


class _Slots(_Two):
    __slots__ = ("act",)

    def __getstate__(self):
        return vars(self).copy(), self.act

    def __setstate__(self, state):
        super().__setstate__(state[0])
        self.act = state[1]

    def forward(self, x):
        return self.c(getattr(torch, self.act)(self.a(x)))


class _Bag(_Two, dict):
    __hash__ = nn.Module.__hash__

    def forward(self, x):
        return self.c(getattr(torch, self["act"])(self.a(x)))


def test_slots_and_the_items_of_a_dict_are_copied():
    slots, bag = _Slots(), _Bag()
    slots.act = bag["act"] = "relu"
    for model in (slots, bag):
        small = fxprune.transform(model, X, ratio=0.5, path="eager")
        assert type(small) is type(model)
        assert small.a.out_features == 8
        assert (small(X) - fxprune.masked(model, fxprune.record(small).removed)(X)).abs().max() < 1e-12


@dataclasses.dataclass
class _Inputs:
    x: torch.Tensor


def test_a_data_class_among_the_inputs_is_named_with_the_next_step():
    with pytest.raises(
        fxprune.InputError, match=r"hold a _Inputs, .*\n.*\n  do   torch.export.register_dataclass\(_Inp"
    ):
        fxprune.transform(_Two(), (_Inputs(X),), ratio=0.5)
