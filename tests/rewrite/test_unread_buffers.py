"""Buffers that the example inputs do not reach, with sizes of layers that are smaller now: the record names them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune


class Caches(nn.Module):
    """The keys and values of earlier positions, [batch, heads, positions, width]."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.register_buffer("k", torch.zeros(2, heads, 16, width), persistent=False)
        self.register_buffer("v", torch.zeros(2, heads, 16, width), persistent=False)

    def forward(self, pos: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k[: len(k), :, pos], self.v[: len(v), :, pos] = k, v
        return self.k[: len(k)], self.v[: len(v)]


class Decodes(nn.Module):
    """An attention that keeps keys and values where it is given positions, in a module of its own or in itself."""

    def __init__(self, *, own: bool) -> None:
        super().__init__()
        self.heads, self.width = 4, 8
        self.inp, self.qkv, self.out = nn.Linear(8, 32), nn.Linear(32, 96), nn.Linear(32, 3)
        self.cache = None if own else Caches(4, 8)
        if own:
            self.register_buffer("k", torch.zeros(2, 4, 16, 8))
            self.register_buffer("v", torch.zeros(2, 4, 16, 8))
        self.register_buffer("of_another", torch.zeros(7, 11))

    def forward(self, x: Tensor, pos: Tensor | None = None) -> Tensor:
        qkv = self.qkv(self.inp(x)).reshape(*x.shape[:2], 3, self.heads, self.width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if pos is not None:
            k, v = (self.cache or self.store)(pos, k, v)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(out.reshape(*x.shape[:2], self.heads * self.width))

    def store(self, pos: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return Caches.forward(self, pos, k, v)


X, POS = torch.randn(2, 5, 8), torch.arange(5)


@pytest.mark.parametrize("own", [True, False])
def test_caches_that_no_input_reaches_are_named_with_the_next_step(own: bool) -> None:
    small = fxprune.transform(Decodes(own=own).eval(), X, ratio=0.4)
    names = '"k", "v"' if own else '"cache.k", "cache.v"'
    assert (small.heads, small.width) == (3, 5)
    assert [reason for reason in fxprune.record(small).reasons if reason.startswith("buffer")] == [
        f"buffers {names} stay [2, 4, 16, 8]: the example inputs do not reach them, and of the widths of its layers "
        "4 is 3 now, 8 is 5 now. If they count them, give inputs that reach them with `also=` or `methods=`"
    ]


@pytest.mark.parametrize("own", [True, False])
def test_inputs_that_reach_them_cut_them(own: bool) -> None:
    small = fxprune.transform(Decodes(own=own).eval(), X, ratio=0.4, also=[(X, POS)])
    assert (small if own else small.cache).k.shape == (2, small.heads, 16, small.width)
    assert not [reason for reason in fxprune.record(small).reasons if reason.startswith("buffer")]
    assert torch.isfinite(small(X, POS)).all()


def test_nothing_is_said_of_sizes_that_stay() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    model.register_buffer("of_inputs", torch.zeros(5, 3, 1))
    model.register_buffer("of_width", torch.zeros(5, 8, 1))
    reasons = fxprune.record(fxprune.transform(model, torch.randn(2, 5), ratio=0.5)).reasons
    assert [reason.partition(":")[0] for reason in reasons] == ['buffer "of_width" stays [5, 8, 1]']
