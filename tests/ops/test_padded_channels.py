"""Channels that a pad adds: each of them can go, also the last one of a border."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune


class Padded(nn.Module):
    """A shortcut of 3 channels with a border of two more, added to 5 channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 5, 1), nn.Conv2d(5, 2, 1)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(self.first(x), (0, 0, 0, 0, self.before, self.after))
        made: Tensor = self.last((shortcut + self.second(x)).relu())
        return made


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 1)])
def test_a_border_goes_in_two_steps_as_in_one(before: int, after: int) -> None:
    torch.manual_seed(0)
    net, x = Padded(before, after).double().eval(), torch.randn(1, 2, 3, 3).double()
    border = [*range(before), *range(5 - after, 5)]
    at_once: Any = fxprune.transform(net, x, masks={"second.weight": _without(5, border)}, prefer="graph")
    half: Any = fxprune.transform(net, x, masks={"second.weight": _without(5, border[1:])}, prefer="graph")
    rest = _without(4, [0 if before else 3])
    stepwise: Any = fxprune.transform(half, x, masks={"second.weight": rest})
    assert half.second.out_channels == 4
    assert at_once.second.out_channels == stepwise.second.out_channels == 3
    assert torch.equal(at_once.second.weight, stepwise.second.weight)
    assert torch.allclose(at_once(x), stepwise(x), atol=1e-12)
    assert torch.allclose(at_once(x), fxprune.masked(net, fxprune.record(at_once).removed)(x), atol=1e-12)


def _without(size: int, gone: list[int]) -> Tensor:
    """The mask of a dimension of this size without some slots."""
    mask = torch.ones(size, dtype=torch.bool)
    mask[gone] = False
    return mask
