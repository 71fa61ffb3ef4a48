"""`len` of a tensor counts as its first size does: it is tied to the width that it is compared or used with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support import randomise

WIDTH = 24


class Net(nn.Module):
    """A layer whose outputs go through a piece of code that reads lengths."""

    def __init__(self, code: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3)
        self.scale = nn.Parameter(torch.randn(WIDTH))
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.code(self, self.first(x)))


def compared(net: Any, h: Tensor) -> Tensor:
    assert len(net.first.bias) == h.shape[-1]
    return h


def compared_with_another_length(net: Any, h: Tensor) -> Tensor:
    if len(net.first.bias) != len(net.scale):
        raise ValueError("other widths")
    return h * net.scale


def at_least(net: Any, h: Tensor) -> Tensor:
    return h * net.scale if len(net.scale) >= h.shape[-1] else h


def a_size_of_a_view(net: Any, h: Tensor) -> Tensor:
    return (h.unsqueeze(0) * 2).view(len(h), len(net.first.bias))


def a_length_of_a_transposed_tensor(net: Any, h: Tensor) -> Tensor:
    assert len(h.t()) == len(net.first.weight)
    return h


def a_loop(net: Any, h: Tensor) -> Tensor:
    return torch.stack([h[i] for i in range(len(h))])


def lengths_of_other_things(net: Any, h: Tensor) -> Tensor:
    return h * len([1, 2]) + len("abc") + len(list(net.children()))


CODES = [
    *(compared, compared_with_another_length, at_least, a_size_of_a_view),
    *(a_length_of_a_transposed_tensor, a_loop, lengths_of_other_things),
]


@pytest.mark.parametrize("code", CODES)
def test_lengths_hold_no_channels(code: Callable[[Any, Tensor], Tensor]) -> None:
    net, x = randomise(Net(code), 0).double().eval(), torch.randn(4, 5, dtype=torch.float64)
    small = fxprune.transform(net, x, ratio=0.5)
    assert type(small) is Net
    assert small.first.out_features == WIDTH // 2
    assert [why for why in fxprune.record(small).reasons if not why.startswith("not reached")] == []
    reference = fxprune.masked(net, fxprune.record(small).removed)
    assert torch.allclose(small(x), reference(x), rtol=0, atol=1e-9)


class Heads(nn.Module):
    """Attention whose number of heads is the length of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (y.view(b, t, len(self.temperature), -1).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return self.out(((q @ k.mT * self.temperature).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_heads_that_a_parameter_counts_go() -> None:
    net, x = randomise(Heads(), 0).double().eval(), torch.randn(2, 6, WIDTH, dtype=torch.float64)
    small = fxprune.transform(net, x, ratio={"*heads*": 0.5})
    assert type(small) is Heads
    assert small.temperature.shape == (2, 1, 1)
    assert torch.allclose(small(x), fxprune.masked(net, fxprune.record(small).removed)(x), rtol=0, atol=1e-9)


def test_len_is_the_one_of_python_before_and_after() -> None:
    file = vars(sys.modules[__name__])
    seen: list[bool] = []

    def code(net: Any, h: Tensor) -> Tensor:
        seen.append("len" in file)
        assert type(len([h])) is int
        return h

    fxprune.transform(Net(code).eval(), torch.randn(4, 5), ratio=0.5)
    assert any(seen)
    assert "len" not in file


def test_a_len_of_the_file_itself_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(value: Any) -> int:
        return 7 if isinstance(value, Tensor) else sys.getsizeof(value)

    monkeypatch.setitem(globals(), "len", own)

    def code(net: Any, h: Tensor) -> Tensor:
        assert len(h) == 7
        return h

    fxprune.transform(Net(code).eval(), torch.randn(4, 5), ratio=0.5)
    assert globals()["len"] is own
