"""Masks of layers whose outputs are no dimension of one tensor."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fxprune


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dropped", "left", "reasons"),
    [
        ([0, 4], 6, 0),  # the same output of both groups
        ([1, 3, 5, 7], 4, 0),
        ([1], 8, 1),  # an output of one group only
        ([0, 1, 4], 6, 1),
        ([0, 1, 2, 3], 8, 1),  # a whole group: its inputs are not asked for
    ],
)
def test_a_mask_of_a_transposed_convolution_with_groups_has_an_entry_for_each_output(
    dropped: list[int], left: int, reasons: int, bias: bool
) -> None:
    net = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, groups=2, bias=bias), nn.ReLU(), nn.Conv2d(8, 4, 1)).double()
    keep, x = torch.ones(8, dtype=torch.bool), torch.randn(1, 4, 6, 6, dtype=torch.float64)
    keep[dropped] = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        small = fxprune.transform(net, x, masks={"0": keep})
    made = fxprune.record(small)
    assert small[0].out_channels == left
    assert len(made.reasons) == reasons, made.reasons
    assert all("only whole rows or columns" in reason for reason in made.reasons)
    assert torch.allclose(small(x), fxprune.masked(net, made.removed)(x), atol=1e-12)
    assert fxprune.record(fxprune.transform(net, x, masks={"0": torch.arange(4) > 0})).after["0.weight"][1] == 3
