"""Functions of aspects that no row of the op table reaches: kernels in hand-made graphs, integers in hidden code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune

UNITS = 6


class Kernel(nn.Module):
    """An LSTM layer that calls torch's kernel by name."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"input": (4 * UNITS, 5), "hidden": (4 * UNITS, UNITS), "first": (4 * UNITS,), "second": (4 * UNITS,)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        self.head = nn.Linear(UNITS, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(2, UNITS)
        weights = (self.input, self.hidden, self.first, self.second)
        options = (False, [], 2, UNITS, 1, True, False, False, False)
        made = torch.ops.aten.mkldnn_rnn_layer(x, *weights, state, state, *options)
        return self.head(made[0])


def test_a_recurrent_kernel_in_a_graph_gets_its_new_number_of_units() -> None:
    torch.manual_seed(0)
    net, x = Kernel().eval(), torch.randn(7, 2, 5)
    small = fxprune.transform(net, x, ratio=0.5, importance="random", seed=0, path="fx", verify=False)
    assert small.get_parameter("hidden").shape == (12, 3)
    reference = fxprune.masked(net, fxprune.record(small).removed)
    with torch.no_grad():
        assert torch.allclose(small(x), reference(x), atol=1e-6)


class Attention(nn.Module):
    """Attention that calls torch's kernel for CPUs by name, without a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 24) for _ in range(3))
        self.head = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).view(2, 5, 4, 6).transpose(1, 2) for layer in (self.q, self.k, self.v))
        made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
        return self.head(made.transpose(1, 2).reshape(2, 5, 24))


def test_an_attention_kernel_in_a_graph_keeps_the_scale_of_its_original_width() -> None:
    torch.manual_seed(0)
    net, x = Attention().eval(), torch.randn(2, 5, 8)
    columns = torch.arange(24) % 6 < 4
    small = fxprune.transform(net, x, masks=dict.fromkeys("qkv", columns), path="fx")
    assert small.get_submodule("q").out_features == 16
    (node,) = (n for n in small.graph.nodes if "flash" in str(n.target))
    assert node.kwargs["scale"] == 6**-0.5
    assert fxprune.verify(net, small, x) < 1e-12


class Hidden(nn.Module):
    """A model that keeps its class: its settings appear in `function` alone."""

    def __init__(self, function: Callable[[Any, torch.Tensor], torch.Tensor], **settings: int) -> None:
        super().__init__()
        self.function = function
        self.first, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 5, 1)
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, self.first(x))


def shuffled(net: Any, h: torch.Tensor) -> torch.Tensor:
    return net.head(F.channel_shuffle(h, net.groups))


def selected(net: Any, h: torch.Tensor) -> torch.Tensor:
    return net.head(h) + h.select(1, net.at)[:, None]


def subscripted(net: Any, h: torch.Tensor) -> torch.Tensor:
    return net.head(h) + h[:, net.at][:, None]


def overwritten(net: Any, h: torch.Tensor) -> torch.Tensor:
    return net.head(h.select_scatter(h.exp().select(1, net.at), 1, net.at))


def part_overwritten(net: Any, h: torch.Tensor) -> torch.Tensor:
    return net.head(h.slice_scatter(h[:, net.at :].exp(), 1, net.at))


@pytest.mark.parametrize("function", [selected, subscripted, overwritten, part_overwritten])
def test_an_index_that_hidden_code_uses_is_recounted(function: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    net, x = Hidden(function, at=7).eval(), torch.randn(2, 3, 4, 4)
    small = fxprune.transform(net, x, masks={"first": torch.arange(12) % 3 > 0}, path="eager")
    assert type(small) is Hidden
    assert (small.first.out_channels, small.at) == (8, 4)  # 1, 2, 4 and 5 stand before 7
    assert fxprune.verify(net, small, x) < 1e-12


def test_a_number_of_groups_that_hidden_code_uses_is_recounted() -> None:
    torch.manual_seed(0)
    net, x = Hidden(shuffled, groups=3).eval(), torch.randn(2, 3, 4, 4)
    small = fxprune.transform(net, x, masks={"first": torch.arange(12) // 4 != 1}, path="eager")
    assert type(small) is Hidden
    assert (small.first.out_channels, small.groups) == (8, 2)
    assert fxprune.verify(net, small, x) < 1e-12


class Identity(nn.Module):
    """The product of two weights, made by running an identity matrix through their layers."""

    def __init__(self, *, columns: bool) -> None:
        super().__init__()
        self.columns = columns
        self.first, self.down, self.up = nn.Linear(5, 8), nn.Linear(8, 3, bias=False), nn.Linear(3, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x).relu()
        n = h.shape[1]
        identity = torch.eye(n, m=n, dtype=h.dtype) if self.columns else torch.eye(n, dtype=h.dtype)
        return h @ self.up(self.down(identity))


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
@pytest.mark.parametrize("columns", [False, True])
def test_rows_and_columns_of_an_identity_are_the_same_channels(path: str, columns: bool) -> None:
    torch.manual_seed(0)
    net, x = Identity(columns=columns).double().eval(), torch.randn(7, 5, dtype=torch.float64)
    small = fxprune.transform(net, x, ratio={"first": 0.5}, path=path)
    record = fxprune.record(small)
    assert record.error < 1e-12
    assert record.after["first.weight"] == (4, 5)
    assert record.after["down.weight"] == (3, 4)
    assert torch.allclose(small(x), fxprune.masked(net, record.removed)(x), rtol=0, atol=1e-12)


def test_an_identity_that_is_not_square_keeps_its_sizes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), Padded()).double().eval()
    with pytest.warns(fxprune.NothingRemovedWarning, match=r"meets a fixed dimension.*holds 0.weight\[0\]"):
        fxprune.transform(net, torch.randn(3, 4, dtype=torch.float64), ratio=0.5)


class Padded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.eye(6, 9, dtype=x.dtype)
