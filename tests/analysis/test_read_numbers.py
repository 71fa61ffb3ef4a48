"""Forwards that read numbers from tensors: from buffers that stay as they are, or from what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.proof.difference import relative_error


class Anchors(nn.Module):
    """A detector's head, which makes its table of anchors in the first call with a size, from the number of a tensor.

    kind: where the number stands: in a tensor, in a list of tensors, or in a buffer.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.size = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), None
        self.kind, strides = kind, torch.tensor([8.0, 16.0])
        if kind == "buffer":
            self.register_buffer("stride", strides)
        else:
            self.stride = strides if kind == "tensor" else [strides[:1], strides[1:]]

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x))).flatten(2)
        if self.size != x.shape:
            self.size, strides = x.shape, self.stride.tolist() if self.kind == "buffer" else map(float, self.stride)
            self.anchors = torch.cat([torch.full((1, 1, y.shape[2]), s, dtype=y.dtype) for s in strides], 1)
        return y[:, :2] * self.anchors + y[:, 2:]


def small_of(net: nn.Module, x: Tensor, *, ratio: float = 0.5) -> nn.Module:
    """A small model of the net's class, which equals the masked original."""
    net, x = net.double().eval(), x.double()
    small = fxprune.transform(net, x, ratio=ratio, path="eager")
    assert type(small) is type(net)
    with torch.no_grad():
        assert relative_error(small(x), fxprune.masked(net, fxprune.record(small).removed)(x)) < 1e-9
    return small


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "called before"])
@pytest.mark.parametrize("kind", ["tensor", "list", "buffer"])
def test_a_table_made_in_the_first_call_from_a_number_is_walked_on_fake_tensors(kind: str, warm: bool) -> None:
    net, x = Anchors(kind).double(), torch.randn(1, 3, 8, 8).double()
    if warm:
        net(x)
    assert not fxprune.analyze(net.eval(), x, path="eager").captured.real
    assert fxprune.transform(net, x, ratio=0.5, path="eager").size == (x.shape if warm else None), (
        "the original's state"
    )
    small = small_of(net, x)
    assert small.a.out_channels == 8
    wider = torch.randn(2, 3, 6, 6).double()
    with torch.no_grad():
        assert relative_error(small(wider), fxprune.masked(net, fxprune.record(small).removed)(wider)) < 1e-9


def test_channels_stay_where_a_number_of_their_buffer_is_read() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
            self.register_buffer("scale", torch.arange(1.0, 9.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * self.scale / float(self.scale[-1]))

    with pytest.warns(fxprune.NothingRemovedWarning, match="its sizes cannot be recounted"):
        small_of(Net(), torch.randn(2, 4))


def narrowed(net: nn.Module, h: Tensor) -> None:
    h.narrow(1, 1, 5)


def split(net: nn.Module, h: Tensor) -> None:
    h.split([2, 6], 1)


def viewed(net: nn.Module, h: Tensor) -> None:
    h.view(h.shape[0], 2, 4, *h.shape[2:])


def tied(net: nn.Module, h: Tensor) -> None:
    t = h.permute(0, 2, 3, 1)
    F.linear(F.linear(t, net.other.weight), net.other.weight.t() * torch.ones(8, 8))


@pytest.mark.parametrize("inside", [False, True], ids=["model", "block"])
@pytest.mark.parametrize("unused", [narrowed, split, viewed, tied])
def test_unused_code_behind_a_decision_by_numbers_keeps_the_channels_that_it_needs(
    unused: Callable[[nn.Module, Tensor], None], inside: bool
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1))
            self.a, self.other, self.o = nn.Conv2d(3, 8, 1), nn.Linear(8, 8, bias=False), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(self.first(x))
            if float(h.sum()) > -1e9:
                unused(self, h)
            return self.o(h)

    net = nn.Sequential(Net()) if inside else Net()
    small = small_of(net, torch.randn(2, 3, 6, 6))
    block: Any = small[0] if inside else small
    assert block.first[0].out_channels == 3
    assert block.a.out_channels >= (6 if unused is narrowed else 8)
