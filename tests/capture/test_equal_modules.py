"""Modules that are equal by value are refused by every function, since torch lists only one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

X = torch.randn(2, 6)


class ByValue(nn.Linear):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByValue) and self.weight.shape == other.weight.shape

    def __hash__(self) -> int:
        return hash(self.weight.shape)


class WithoutHash(nn.Linear):
    def __eq__(self, other: object) -> bool:
        return self is other


class Bag(nn.Module, dict[str, int]):
    """A module that is a dict, which has no hash."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x)


FUNCTIONS: dict[str, Callable[[nn.Module], Any]] = {
    "transform": lambda net: fxprune.transform(net, X, ratio=0.5),
    "analyze": lambda net: fxprune.analyze(net, X),
    "masked": lambda net: fxprune.masked(net, {}),
    "cost": lambda net: fxprune.cost(net, X),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_modules_that_cannot_be_told_apart_are_refused(function: str) -> None:
    layers = nn.Sequential(nn.Linear(6, 8), ByValue(8, 8), nn.ReLU(), ByValue(8, 8), nn.Linear(8, 3))
    with pytest.raises(fxprune.CaptureError, match='"1" and "3" are equal, of class ByValue'):
        FUNCTIONS[function](layers)
    with pytest.raises(fxprune.CaptureError, match='"0" has no hash, of class WithoutHash'):
        FUNCTIONS[function](nn.Sequential(WithoutHash(6, 8), nn.Linear(8, 3)))
    with pytest.raises(fxprune.CaptureError, match="the model has no hash, of class Bag"):
        FUNCTIONS[function](Bag())


def test_one_module_at_two_places_is_no_other_one() -> None:
    layer = ByValue(8, 8)
    assert fxprune.analyze(nn.Sequential(nn.Linear(6, 8), layer, nn.ReLU(), layer, nn.Linear(8, 3)), X).groups
