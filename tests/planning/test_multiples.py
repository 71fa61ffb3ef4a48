"""Dimensions whose number of slots must be a multiple of a number, because a kernel needs it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune


class Experts(nn.Module):
    """Rows sorted by expert, multiplied by the matrices of their experts in one grouped product."""

    def __init__(self, width: int, hidden: int, *, transposed: bool = False) -> None:
        super().__init__()
        self.transposed = transposed
        self.stem, self.router = nn.Linear(width, width), nn.Linear(width, 4)
        shape = (4, hidden, width) if transposed else (4, width, hidden)
        self.up, self.down = nn.Parameter(torch.randn(shape) / 6), nn.Parameter(torch.randn(4, hidden, width) / 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        which = self.router(x).argmax(-1)
        order = which.argsort()
        counts = torch.stack([(which == expert).sum() for expert in range(4)])
        offsets = counts.cumsum(0).to(torch.int32)
        up = self.up.mT if self.transposed else self.up
        y = F.grouped_mm(torch.relu(F.grouped_mm(x[order], up, offs=offsets)), self.down, offs=offsets)
        return x + torch.zeros_like(y).index_copy(0, order, y)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("hidden", "ratio", "kept"), [(48, 0.3, 36), (40, 0.5, 20), (24, 0.9, 4)])
def test_rows_of_a_grouped_product_have_16_bytes(hidden: int, ratio: float, kept: int, transposed: bool) -> None:
    torch.manual_seed(0)
    model, x = Experts(32, hidden, transposed=transposed).eval(), torch.randn(8, 32)
    small = fxprune.transform(model, x, ratio={"*up*": ratio}, importance="random", seed=0)
    made = fxprune.record(small)
    assert small.down.shape[1] == kept
    assert made.error is not None
    assert made.error < 1e-9
    assert torch.allclose(small(x), fxprune.masked(model, made.removed)(x), atol=1e-5)
    rounded = hidden - int(hidden * ratio + 1e-9) != kept
    assert any("needs 16 bytes" in reason for reason in made.reasons) is rounded
