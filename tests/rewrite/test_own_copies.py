"""Modules that say themselves how they are copied: `__deepcopy__` of the user's class."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

import fxprune
from tests.support import relative_error

X = torch.randn(3, 4).double()


class Anew(nn.Module):
    """A model whose copies are made anew from its width."""

    def __init__(self, width=8):
        super().__init__()
        self.width = width
        self.a, self.b = nn.Linear(4, width).double(), nn.Linear(width, 2).double()

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

    def __deepcopy__(self, memo):
        made = type(self)(self.copied_width())
        made.load_state_dict(self.state_dict())
        return made

    def copied_width(self):
        return self.width


class Stubborn(Anew):
    def copied_width(self):
        return 8


@pytest.mark.parametrize("path", ["eager", "fx", "export", "hooks"])
@pytest.mark.parametrize("kind", [Anew, Stubborn])
@pytest.mark.parametrize("inside", [False, True])
def test_modules_that_are_copied_anew_get_the_small_tensors(kind, path, inside):
    model = nn.Sequential(kind(), nn.Tanh()) if inside else kind()
    small = fxprune.transform(model, X, ratio=0.5, path=path)
    assert {4} == {tensor.shape[0] for name, tensor in small.named_parameters() if name.endswith("a.weight")}
    assert relative_error(small(X), fxprune.masked(model, fxprune.record(small).removed)(X)) < 1e-12


@pytest.mark.parametrize("inside", [False, True])
def test_a_method_that_cannot_copy_the_small_model_is_named(inside):
    follows = fxprune.transform(Anew(), X, ratio=0.5)
    assert torch.equal(copy.deepcopy(follows)(X), follows(X))
    assert not any("deepcopy" in reason for reason in fxprune.record(follows).reasons)
    small = fxprune.transform(nn.Sequential(Stubborn(), nn.Tanh()) if inside else Stubborn(), X, ratio=0.5)
    where = '"0"' if inside else "the small model"
    (told,) = [reason for reason in fxprune.record(small).reasons if "deepcopy" in reason]
    assert told.startswith(f"copy.deepcopy of {where} raises (RuntimeError: Error(s) in loading state_dict")
    assert told.endswith("Stubborn.__deepcopy__ does not follow the widths")


class DropsItsCache(nn.Linear):
    """A layer whose state is without what it keeps and counts."""

    def __init__(self):
        super().__init__(8, 8)
        self.table, self.shifts, self.calls, self.trainer = None, None, 0, None

    def __getstate__(self):
        dropped = ("table", "shifts", "calls", "trainer")
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.table, self.calls, self.trainer = None, 0, None

    def forward(self, x):
        shifts = getattr(self, "shifts", None)
        h = super().forward(x) * (1 + self.calls)
        return h if self.table is None or shifts is None else h + self.table + shifts[0]


@pytest.mark.parametrize("verify", [True, False])
def test_what_a_getstate_drops_is_there_in_the_small_model(verify):
    model = nn.Sequential(nn.Linear(4, 8), DropsItsCache(), nn.ReLU(), nn.Linear(8, 2)).double()
    model[1].table, model[1].shifts, model[1].calls = torch.arange(8.0), [torch.arange(8.0) * 2], 3
    model[1].trainer = logging.getLogger("trainer")
    small = fxprune.transform(model, X, ratio=0.5, path="eager", verify=verify)
    assert small[1].table.shape == small[1].shifts[0].shape == (4,)
    assert (small[1].calls, model[1].calls, small[1].trainer) == (3, 3, None)
    reference = fxprune.masked(model, fxprune.record(small).removed)
    assert torch.equal(reference[1].table, model[1].table)
    assert reference[1].table is not model[1].table
    assert relative_error(small(X), reference(X)) < 1e-12
