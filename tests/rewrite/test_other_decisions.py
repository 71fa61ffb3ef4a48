"""Decisions of forward that come out otherwise after a removal: the cause is said, and no size is blamed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Decides(nn.Module):
    """Runs a layer that the analysis has not seen, if the mean over its channels is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rare, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        with torch.no_grad():
            self.first.weight.zero_()
            self.first.bias.copy_(torch.tensor([-3.0, -3, -3, -3, 9, 9, 9, 9]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.mean() < 0:
            y = self.rare(y)
        made: Tensor = self.last(y)
        return made


def test_a_decision_that_the_removal_turns_is_named() -> None:
    net, x = Decides().eval(), torch.randn(2, 3)
    masks = {"first.weight": torch.tensor([True] * 4 + [False] * 4)}
    with pytest.raises(fxprune.RewriteError) as caught:
        fxprune.transform(net, x, masks=masks, path="eager", strict=True)
    said = str(caught.value)
    assert said.startswith("forward decides otherwise in the smaller model")
    assert "it runs rare, and the original does not on these inputs" in said
    assert "`also`" in said
    assert "read a size" not in said


class ByElements(nn.Module):
    """Decides by the number of elements of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        if self.first.weight.numel() > 100:
            y = self.second(y).relu() + y
        made: Tensor = self.last(y)
        return made


def test_a_decision_by_the_number_of_elements_holds_the_channels_that_it_needs() -> None:
    net, x = ByElements().double().eval(), torch.randn(2, 5).double()
    small: Any = fxprune.transform(net, x, ratio=0.5, path="eager")
    made = fxprune.record(small)
    assert small.first.out_features == 21  # 20 * 5 = 100 elements are too few
    assert any("the comparison by > in the model" in reason for reason in made.reasons)
    assert torch.allclose(small(x), fxprune.masked(net, made.removed)(x), atol=1e-12)
