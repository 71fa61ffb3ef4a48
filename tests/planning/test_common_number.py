"""One number for several widths: the least one that all of them can have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from tests.support import randomise


class Split(nn.Module):
    """Channels in equal parts. All parts but the last go through a convolution with groups."""

    def __init__(self, width: int = 32, groups: int = 8, parts: int = 4) -> None:
        super().__init__()
        self.width = width
        self.into = nn.Conv2d(3, width * parts, 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, groups=groups) for _ in range(parts - 1))
        self.out = nn.Conv2d(width * parts, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *some, last = self.into(x).split(self.width, 1)
        made = [conv(part) for conv, part in zip(self.convs, some, strict=True)]
        return self.out(torch.cat([*made, last[..., 1:-1, 1:-1]], 1))


X = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def pruned(net: nn.Module, **options: object) -> nn.Module:
    return fxprune.transform(net, X, **{"ratio": 0.3, "importance": "random", "seed": 0, "path": "eager"} | options)


def error(net: nn.Module, small: nn.Module) -> float:
    with torch.no_grad():
        expected = fxprune.masked(net, fxprune.record(small).removed)(X)
        return float((small(X) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("width", "groups", "least"),
    [
        (32, 8, 24),  # 6 groups of 3 are 18, and the last part keeps 23: 6 groups of 4, or 8 of 3
        (64, 8, 48),  # 36 and 45: no grid has 45, 46 or 47
        (30, 5, 24),  # 4 groups of 5 are 20, and 21: 4 groups of 6 come next
    ],
)
def test_all_parts_have_the_least_number_that_each_of_them_can_have(width: int, groups: int, least: int) -> None:
    net = randomise(Split(width, groups).double().eval(), 0, weights=True)
    small = pruned(net)
    assert type(small) is Split
    assert small.width == least
    assert small.into.out_channels == 4 * least
    assert error(net, small) < 1e-9


def test_everything_stays_where_no_smaller_number_fits() -> None:
    net = randomise(Split(4, 2).double().eval(), 0, weights=True)
    with pytest.warns(fxprune.NothingRemovedWarning, match="width is one number"):
        small = pruned(net)  # 30 % of 2 groups and of 2 channels are none
    assert (small.width, small.into.out_channels) == (4, 16)


def test_the_reason_names_each_place_and_number_once() -> None:
    small = pruned(randomise(Split().double().eval(), 0, weights=True))
    (reason,) = [r for r in fxprune.record(small).reasons if "width is one number" in r]
    assert reason.count("needs 18") == reason.count("needs 23") == 1
