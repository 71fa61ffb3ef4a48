"""The default keeps the class where a graph that loses more would do something else than the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support import randomise

LENGTH = 6


class Net(nn.Module):
    """A model whose code has the number 16 in it, so that its class cannot lose the 16 channels of `second`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 12), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.relu(self.first(x))).reshape(x.shape[0], x.shape[1], 16)
        return self.last(torch.relu(h) * self.scale(x))

    def scale(self, x: Tensor) -> Any:
        return 1.0


class Anchors(Net):
    """A table that the first call with a size makes, from a number in a tensor, as the heads of detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.size: Any = None
        self.stride = torch.tensor([8.0])

    def scale(self, x: Tensor) -> Any:
        if self.size != x.shape:
            self.size = x.shape
            self.anchors = torch.full((x.shape[1], 1), float(self.stride[0]), dtype=x.dtype)
        return self.anchors


class TableOfTables(Net):
    """One table for each length, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[int, Tensor] = {}

    def scale(self, x: Tensor) -> Any:
        length = x.shape[1]
        if length not in self.tables:
            self.tables[length] = torch.arange(1, length + 1, dtype=x.dtype)[:, None]
        return self.tables[length]


class GrowingTable(Net):
    """A buffer that grows with the longest input so far."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(0, 1), persistent=False)

    def scale(self, x: Tensor) -> Any:
        if self.table.shape[0] < x.shape[1]:
            self.table = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.table[: x.shape[1]]


class Smoothed(Net):
    """Uses in each call the state that the call before has left."""

    def __init__(self) -> None:
        super().__init__()
        self.level: Any = None

    def scale(self, x: Tensor) -> Any:
        level = x.mean().detach()
        self.level = level if self.level is None else 0.5 * self.level + level
        return self.level


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 0.5


class HalfGradient(Net):
    def scale(self, x: Tensor) -> Any:
        return Half.apply(self.last.bias).mean()


def made(kind: Callable[[], nn.Module], *, warm: bool) -> tuple[nn.Module, Tensor]:
    model, x = randomise(kind(), 0).double().eval(), torch.randn(2, LENGTH, 4, dtype=torch.float64)
    if warm:
        model(x)
    return model, x


@pytest.mark.filterwarnings("ignore::fxprune.ChannelsStayWarning")
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
@pytest.mark.parametrize("kind", [Anchors, TableOfTables, GrowingTable, Smoothed])
def test_a_model_with_state_keeps_its_class(kind: type[nn.Module], warm: bool) -> None:
    model, x = made(kind, warm=warm)
    small = fxprune.transform(model, x, ratio=0.5)
    assert type(small) is kind
    reference = fxprune.masked(model, fxprune.record(small).removed)
    assert any("16" in reason or "stay" in reason for reason in fxprune.record(small).reasons)
    for length in (LENGTH, LENGTH + 3, LENGTH - 2, LENGTH):
        other = torch.randn(2, length, 4, dtype=torch.float64)
        assert torch.allclose(small(other), reference(other), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        (Anchors, "forward changes size when a size is another one"),
        (HalfGradient, "Half"),
    ],
)
def test_a_warning_says_what_a_graph_would_have_lost_more_and_how_to_get_it(kind: type[nn.Module], lost: str) -> None:
    model, x = made(kind, warm=True)
    with pytest.warns(fxprune.ChannelsStayWarning) as caught:
        small = fxprune.transform(model, x, ratio=0.5)
    (said,) = (reason for reason in fxprune.record(small).reasons if reason.startswith("a graph would lose"))
    assert "an exported graph does not keep this: " in said
    assert lost in said
    (warning,) = caught
    assert str(warning.message) == f'{said}, so the result is a {kind.__name__}; pass `prefer="graph"` for the graph'
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.FixedSizesWarning)
        graph = fxprune.transform(model, x, ratio=0.5, prefer="graph")
    more = sum(p.numel() for p in small.parameters()) - sum(p.numel() for p in graph.parameters())
    assert said.startswith(f"a graph would lose {more} parameters more")


def test_no_warning_where_the_class_is_asked_for_or_loses_as_much() -> None:
    model, x = made(Anchors, warm=True)
    fxprune.transform(model, x, ratio=0.5, prefer="class")
    fxprune.transform(model, x, ratio=0.5, ignore=["second"])


@pytest.mark.filterwarnings("ignore::fxprune.ChannelsStayWarning")
def test_a_backward_of_its_own_keeps_the_class() -> None:
    model, x = made(HalfGradient, warm=False)
    small = fxprune.transform(model, x, ratio=0.5)
    assert type(small) is HalfGradient
    reference = fxprune.masked(model, fxprune.record(small).removed)
    for net in (small, reference):
        net(x).sum().backward()
    assert torch.allclose(small.last.bias.grad, reference.last.bias.grad, rtol=0, atol=1e-9)


def test_a_model_without_state_gives_its_class_up() -> None:
    model, x = made(Net, warm=False)
    with pytest.warns(fxprune.ClassLostWarning):
        small = fxprune.transform(model, x, ratio=0.5)
    assert isinstance(small, torch.fx.GraphModule)


@pytest.mark.filterwarnings("ignore::fxprune.FixedSizesWarning")
def test_a_class_that_can_lose_nothing_is_given_up_and_the_lost_state_is_named() -> None:
    class Single(Anchors):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("first", nn.Identity())
            self.second = nn.Linear(4, 16)

    model, x = made(Single, warm=True)
    with pytest.warns(fxprune.ClassLostWarning):
        small = fxprune.transform(model, x, ratio=0.5)
    assert any("forward changes anchors" in reason for reason in fxprune.record(small).reasons)


class Dropping(Net):
    """A layer of torch with two modes, of which an exported graph has one."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] < 100, "a decision that no symbolic trace can take"
        return super().forward(self.drop(x))


def test_a_model_with_two_modes_keeps_its_class() -> None:
    model, x = made(Dropping, warm=False)
    with pytest.warns(fxprune.ChannelsStayWarning, match="the graph is that of evaluation mode: what drop") as caught:
        small = fxprune.transform(model, x, ratio=0.5)
    assert str(caught[0].message).startswith("a graph would lose ")
    assert type(small) is Dropping
    assert fxprune.record(small).removed
    assert not torch.equal(small.train()(x), small(x))
