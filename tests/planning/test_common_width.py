"""Blocks that compute their numbers from one common width: they all fit the least width that there is for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from tests.support import randomise


class Attention(nn.Module):
    """Attention whose head width is `channels // heads`, and whose result is brought back to `channels`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, channels = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, channels // self.num_heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        return x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, channels))


class Halves(nn.Module):
    """A block of two halves of its width, which it computes from the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.last = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        hidden = self.first(x).relu()
        left, right = hidden.split([half, x.shape[-1] - half], dim=-1)
        return x + self.last(torch.cat([left.tanh(), right], -1))


def network(width: int, *blocks: nn.Module) -> nn.Module:
    return randomise(nn.Sequential(nn.Linear(7, width), *blocks, nn.Linear(width, 5)).double().eval(), 0)


X = torch.randn(2, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("width", "heads", "left"),
    [
        (24, 4, (18, 3)),  # 17 of 24 would stay; 3 heads of 6 are the least that is as wide
        (60, 5, (44, 4)),  # 42; 4 heads of 11
        (192, 6, (135, 5)),  # 135; 5 heads of 27
        (384, 12, (270, 9)),  # 269; 9 heads of 30
    ],
)
@pytest.mark.parametrize("depth", [1, 3])
def test_the_least_width_that_is_heads_times_head_width_stays(
    width: int, heads: int, left: tuple[int, int], depth: int
) -> None:
    model = network(width, *(Attention(width, heads) for _ in range(depth)))
    small = fxprune.transform(model, X, ratio=0.3, importance="random", seed=3, path="eager")
    assert small[0].out_features == left[0]
    for block in small[1:-1]:
        assert (block.num_heads, block.qkv.out_features) == (left[1], 3 * left[0])


def test_blocks_with_other_heads_share_a_width() -> None:
    model = network(24, Attention(24, 4), Attention(24, 3), Attention(24, 6))
    small = fxprune.transform(model, X, ratio=0.3, importance="random", seed=3, path="eager")
    width = small[0].out_features
    assert width < 24
    assert all(width % block.num_heads == 0 and block.qkv.out_features == 3 * width for block in small[1:-1])


def test_blocks_of_different_kinds_share_a_width() -> None:
    model = network(24, Attention(24, 4), Halves(24))
    small = fxprune.transform(model, X, ratio=0.3, importance="random", seed=3, path="eager")
    assert small[0].out_features == small[2].first.out_features == 18
    assert fxprune.record(small).error < 1e-9


def test_the_reason_names_the_block() -> None:
    model = network(60, Attention(60, 5))
    small = fxprune.transform(model, X, ratio=0.3, importance="random", seed=3, path="eager")
    reasons = [r for r in fxprune.record(small).reasons if "one number" in r]
    assert any("1.num_heads is one number for several widths" in reason for reason in reasons)
