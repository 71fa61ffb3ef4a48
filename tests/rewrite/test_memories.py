"""Models that remember results of earlier calls, and were called before they are pruned."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support import relative_error

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Queue(deque[Any]):
    pass


class LastTwo(nn.Module):
    """Reads the features of the last two calls."""

    def __init__(self, hold: Callable[[Any], Any], take: Callable[[Any], Any], kind: Callable[..., Any]) -> None:
        super().__init__()
        self.features, self.last = nn.Linear(8, 16), nn.Linear(32, 4)
        self.held, self.take = hold(kind(maxlen=2)), take

    def forward(self, x: Tensor) -> Tensor:
        made, memory = self.features(x).relu(), self.take(self.held)
        memory.append(made)
        if len(memory) < 2:
            memory.append(made)
        return self.last(torch.cat(list(memory), 1))


PLACES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "an attribute": (lambda memory: memory, lambda held: held),
    "a dict": (lambda memory: {"memory": memory}, lambda held: held["memory"]),
    "a namespace": (lambda memory: types.SimpleNamespace(memory=memory), lambda held: held.memory),
}


class OnALayer(nn.Module):
    """Keeps the last features in an attribute of a layer of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last = nn.Linear(8, 16), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        made = self.features(x).relu()
        before = getattr(self.features, "made", None)
        self.features.made = made.detach()
        return self.last(torch.cat([torch.zeros_like(made) if before is None else before, made], 1))


class Cache(nn.Module):
    """Writes into a buffer, without `no_grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.register_buffer("cache", torch.zeros(2, 16))

    def forward(self, x: Tensor) -> Tensor:
        self.cache[:] = self.cache * 0.5 + self.features(x)
        return self.last(self.cache.relu())


class Average(nn.Module):
    """Writes into a tensor in an attribute, without `no_grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.last, self.sum = nn.Linear(8, 16), nn.Linear(16, 4), None

    def forward(self, x: Tensor) -> Tensor:
        made = self.features(x)
        if self.sum is None:
            self.sum = torch.zeros_like(made)
        self.sum *= 0.5
        self.sum += made
        return self.last(self.sum.relu())


def check(model: nn.Module, *, warm: bool) -> nn.Module:
    model.double().eval()
    if warm:
        model(X)
    small = fxprune.transform(model, X, ratio=0.5)
    assert fxprune.record(small).removed
    masked = fxprune.masked(model, fxprune.record(small).removed)
    for call in range(4):
        x = X * (call + 1)
        assert relative_error(small(x), masked(x)) < 1e-12
    return small


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("kind", [deque, Queue])
@pytest.mark.parametrize(("hold", "take"), PLACES.values(), ids=PLACES)
def test_a_deque_of_features_has_the_slots_of_the_features_of_this_call(
    hold: Any, take: Any, kind: Any, warm: bool
) -> None:
    small: Any = check(LastTwo(hold, take, kind), warm=warm)
    assert small.features.out_features == 8


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_features_in_an_attribute_of_a_layer_are_state(warm: bool) -> None:
    small: Any = check(OnALayer(), warm=warm)
    assert small.features.out_features == 8


@pytest.mark.parametrize("kind", [Cache, Average])
def test_what_a_call_with_gradients_has_written_is_no_leaf_that_is_trained(kind: Any) -> None:
    model = kind()
    small: Any = check(model, warm=True)
    assert [p.requires_grad for p in small.parameters()] == [True] * 4
    held = small.cache if kind is Cache else small.sum
    assert not (held.is_leaf and held.requires_grad)


def without_last(held: Any) -> Any:
    held.pop()
    return held


@pytest.mark.parametrize("kind", [list, deque])
def test_an_exported_graph_says_that_it_does_not_keep_what_forward_appends(kind: Any) -> None:
    model = LastTwo(lambda _: kind(torch.zeros(2, 2, 16)), without_last, deque).double().eval()
    small = fxprune.transform(model, X, ratio=0.5, path="export")
    assert "an exported graph does not keep this: forward changes held" in fxprune.record(small).reasons
