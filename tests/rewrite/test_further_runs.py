"""Positions and scales that forward reads in a second call, or on further inputs alone."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support import randomise, relative_error


class SecondCall(nn.Module):
    """Does more in its second call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        self.calls += 1
        hidden = self.more(hidden) if self.decides(x) else hidden / 4.0
        return self.last(hidden + self.middle(hidden))

    def decides(self, x: Tensor) -> bool:
        return self.calls == 2

    def more(self, hidden: Tensor) -> Tensor:
        return hidden + hidden[:, 5:6]


class SecondIndex(SecondCall):
    def more(self, hidden: Tensor) -> Tensor:
        return hidden + hidden[:, [3]]


class SecondScale(SecondCall):
    def more(self, hidden: Tensor) -> Tensor:
        return hidden / (hidden.shape[1] ** 0.5)


class Longer(SecondCall):
    """Does more on a longer batch."""

    def decides(self, x: Tensor) -> bool:
        return len(x) > 3


class LongerScale(Longer):
    def more(self, hidden: Tensor) -> Tensor:
        return hidden / (hidden.shape[1] ** 0.5)


@pytest.mark.parametrize("kind", [SecondCall, SecondIndex, SecondScale, Longer, LongerScale])
def test_positions_and_scales_of_further_runs_hold_channels(kind: type[SecondCall]) -> None:
    net, x, longer = randomise(kind().double().eval(), 0), torch.randn(3, 6).double(), torch.randn(5, 6).double()
    also = [longer] if issubclass(kind, Longer) else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        small: Any = fxprune.transform(net, x, ratio=0.5, also=also, path="eager", verify=False)
    masked = fxprune.masked(net, fxprune.record(small).removed)
    found, expected = ([m(given) for given in (x, longer, x)] for m in (copy.deepcopy(small), masked))
    assert relative_error(found, expected) < 1e-12
    assert any("its sizes cannot be recounted" in reason for reason in fxprune.record(small).reasons)


def test_sizes_of_a_second_call_that_follow_stay_free() -> None:
    class Flat(SecondCall):
        def more(self, hidden: Tensor) -> Tensor:
            return hidden.view(-1, hidden.shape[1]) * 2

    net, x = randomise(Flat().double().eval(), 0), torch.randn(3, 6).double()
    small = fxprune.transform(net, x, ratio=0.5, path="eager")
    assert small.first.out_features == 8
