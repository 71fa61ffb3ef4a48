"""Splits in code that no graph shows: a number of parts ties the sizes of the parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

import fxprune
from tests.support import randomise

X = torch.randn(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Split = Callable[[torch.Tensor], Sequence[torch.Tensor]]


class InParts(nn.Module):
    """Three parts of a layer's outputs, each of which a layer of its own reads."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.split = split
        self.whole = nn.Linear(9, 36)
        self.parts = nn.ModuleList(nn.Linear(12, width) for width in (5, 4, 3))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [layer(part) for layer, part in zip(self.parts, self.split(self.whole(x)), strict=True)]


SPLITS: dict[str, Split] = {
    "chunk, the method": lambda y: y.chunk(3, -1),
    "chunk, the function": lambda y: torch.chunk(y, chunks=3, dim=1),
    "tensor_split, the method": lambda y: y.tensor_split(3, dim=-1),
    "tensor_split, the function": lambda y: torch.tensor_split(y, 3, 1),
    "hsplit": lambda y: torch.hsplit(y, 3),
}


@pytest.mark.parametrize("name", SPLITS)
def test_parts_that_are_counted_keep_one_size(name: str) -> None:
    model = randomise(InParts(SPLITS[name]).double().eval(), 0)
    gone = {"whole": torch.tensor([index not in (0, 1, 2, 12, 13, 24) for index in range(36)])}
    small = fxprune.transform(model, X, masks=gone, path="eager")
    assert [layer.in_features for layer in small.parts] == [11, 11, 11]
    assert fxprune.record(small).error < 1e-12
    assert any("sizes are one number" in reason for reason in fxprune.record(small).reasons)


@pytest.mark.parametrize("name", [name for name in SPLITS if name != "hsplit"])
def test_parts_of_a_graph_may_differ(name: str) -> None:
    model = randomise(InParts(SPLITS[name]).double().eval(), 0)
    gone = {"whole": torch.tensor([index not in (0, 1, 2, 12, 13, 24) for index in range(36)])}
    small = fxprune.transform(model, X, masks=gone, prefer="graph")
    assert small.get_parameter("whole.weight").shape == (30, 9)
