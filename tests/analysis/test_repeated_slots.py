"""Dimensions of equal slots, which forward makes of one and whose number it reads from an attribute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support import randomise


class Attention(nn.Module):
    """Returns the weights too, as an average over the heads that looks like one for each."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 6
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n, t, _ = x.shape
        q, k, v = (part.view(n, t, self.heads, self.width).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        weights = (q @ k.mT * 0.35).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2)), self.repeated(weights.mean(1))

    def repeated(self, weights: Tensor) -> Tensor:
        return weights[:, None].broadcast_to(weights.shape[0], self.heads, *weights.shape[1:])


class Expanded(Attention):
    def repeated(self, weights: Tensor) -> Tensor:
        return weights[:, None].expand(-1, self.heads, -1, -1)


class Width(Attention):
    """Repeats what has no width, once for each position in a head."""

    def repeated(self, weights: Tensor) -> Tensor:
        return weights[..., None].expand(*weights.shape, self.width)


class Both(Attention):
    def repeated(self, weights: Tensor) -> Tensor:
        return weights[:, None, ..., None].expand(-1, self.heads, -1, -1, self.width)


class Net(nn.Module):
    def __init__(self, kind: type[Attention]) -> None:
        super().__init__()
        self.attention, self.read = kind(), False

    def forward(self, x: Tensor) -> Any:
        made, weights = self.attention(x)
        return (made, weights) if self.read else made


@pytest.mark.parametrize("kind", [Attention, Expanded, Width, Both])
def test_slots_that_nothing_reads_follow_their_number(kind: type[Attention]) -> None:
    net, x = randomise(Net(kind).double().eval(), 0), torch.randn(2, 5, 24).double()
    small: Any = fxprune.transform(net, x, ratio=0.5, path="eager")
    assert (small.attention.heads, small.attention.width) == (2, 3)
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert torch.allclose(small(x), reference(x), atol=1e-12)


@pytest.mark.parametrize("kind", [Attention, Expanded])
def test_slots_of_a_result_hold_their_number(kind: type[Attention]) -> None:
    net, x = randomise(Net(kind).double().eval(), 0), torch.randn(2, 5, 24).double()
    net.read = True
    small: Any = fxprune.transform(net, x, ratio=0.5, path="eager")
    assert (small.attention.heads, small.attention.width) == (4, 3)
    assert small(x)[1].shape == net(x)[1].shape
