"""Modules that say themselves how they are copied: `__deepcopy__` of the user's class."""

from __future__ import annotations

import copy

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
