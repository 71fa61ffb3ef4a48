"""Forward reads a width from one of torch's own layers: the layer is recounted, and so is what forward does with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support import randomise


def checked(h: Tensor, width: int) -> Tensor:
    assert h.shape[1] == width
    return h


def refused(h: Tensor, width: int) -> Tensor:
    if h.shape[1] != width:
        raise ValueError(width)
    return h


class Reads(nn.Module):
    def __init__(self, read: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.read, self.first, self.norm, self.last = read, nn.Linear(6, 24), nn.BatchNorm1d(24), nn.Linear(24, 4)
        self.conv = nn.Conv1d(24, 24, 1)

    @property
    def width(self) -> int:
        return self.first.out_features

    def embed(self, x: Tensor) -> Tensor:
        return self.last(checked(self.norm(self.first(x)), self.first.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.read(self, self.norm(self.first(x))))


READS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "an assertion on the outputs": lambda m, h: checked(h, m.first.out_features),
    "an assertion on a property": lambda m, h: checked(h, m.width),
    "an assertion on the inputs": lambda m, h: checked(h, m.last.in_features),
    "a condition on a norm": lambda m, h: refused(h, m.norm.num_features),
    "an assertion on a convolution": lambda m, h: checked(m.conv(h[..., None]).squeeze(-1), m.conv.out_channels),
    "an assertion on a bias": lambda m, h: checked(h, m.first.bias.numel()),
    "a view": lambda m, h: h.sin().view(-1, m.first.out_features),
}


@pytest.mark.parametrize("methods", [False, True])
@pytest.mark.parametrize("read", READS)
def test_a_width_that_is_read_from_a_layer_shrinks_with_it(read: str, methods: bool) -> None:
    model = randomise(Reads(READS[read]).double().eval(), 0)
    x, fresh = (torch.randn(n, 6, dtype=torch.float64) for n in (3, 5))
    options = {"methods": {"embed": (x,)}} if methods else {}
    small = fxprune.transform(model, x, ratio=0.5, path="eager", **options)
    assert (small.first.out_features, type(small.first.out_features)) == (12, int)
    reference = fxprune.masked(model, fxprune.record(small).removed)
    torch.testing.assert_close(small(fresh), reference(fresh), rtol=1e-12, atol=1e-12)
    if methods:
        torch.testing.assert_close(small.embed(fresh), reference.embed(fresh), rtol=1e-12, atol=1e-12)


def test_heads_that_are_counted_from_a_layer_go_whole() -> None:
    model = randomise(Reads(lambda m, h: h.view(len(h), m.first.out_features // 4, 4).flatten(1)).eval(), 0)
    small = fxprune.transform(model, torch.randn(3, 6), ratio=0.5, path="eager")
    assert small.first.out_features == 12
