"""Hooks that collect what they see: nothing of the runs of an analysis or a proof stays in their collections."""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

Made = tuple[Callable[..., Any], Callable[[], list[Any]]]
"""A hook, and a function that gives what it has collected."""

SEEN: list[Tensor] = []
TABLE: dict[str, Tensor] = {}


def in_a_global_list() -> Made:
    SEEN.clear()

    def hook(module: nn.Module, args: Any, made: Tensor) -> None:
        SEEN.append(made)

    return hook, lambda: list(SEEN)


def in_a_global_table() -> Made:
    TABLE.clear()
    return lambda module, args, made: TABLE.__setitem__("last", made), lambda: list(TABLE.values())


def in_a_closure() -> Made:
    own: deque[Tensor] = deque(maxlen=9)
    return lambda module, args, made: own.append(made.detach()), lambda: list(own)


class Collector:
    def __init__(self) -> None:
        self.all: list[Tensor] = []
        self.last: Tensor | None = None
        self.named: dict[str, list[Tensor]] = {"inside": []}

    def __call__(self, module: nn.Module, args: Any, made: Tensor) -> None:
        self.see("", module, args, made)

    def see(self, name: str, module: nn.Module, args: Any, made: Tensor) -> None:
        self.all.append(made)
        self.last = made
        self.named["inside"].append(made)

    def collected(self) -> list[Any]:
        return [*self.all, *self.named["inside"], self.last]


def in_an_object() -> Made:
    collector = Collector()
    return collector, collector.collected


def in_the_object_of_a_method() -> Made:
    collector = Collector()
    return functools.partial(collector.see, "layer"), collector.collected


KINDS = (in_a_global_list, in_a_global_table, in_a_closure, in_an_object, in_the_object_of_a_method)


def network(hook: Callable[..., Any]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    net[1].register_forward_hook(hook)
    return net, torch.randn(2, 4)


@pytest.mark.parametrize("path", [None, "export", "fx"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_a_hook_has_collected_is_as_before(kind: Callable[[], Made], path: str | None) -> None:
    hook, collected = kind()
    net, x = network(hook)
    net(x)
    before = collected()
    assert before
    small = fxprune.transform(net, x, ratio=0.5, path=path)
    fxprune.cost(small, x)
    after = collected()
    assert len(after) == len(before)
    assert all(a is b for a, b in zip(after, before, strict=True))


def test_a_hook_that_was_never_called_has_nothing() -> None:
    collector = Collector()
    net, x = network(collector)
    fxprune.transform(net, x, ratio=0.5)
    assert collector.collected() == [None]


def test_a_list_keeps_what_another_thread_may_have_added() -> None:
    hook, collected = in_a_closure()
    net, x = network(hook)
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        fxprune.transform(net, x, ratio=0.5)
    finally:
        end.set()
        other.join()
    assert {type(made) for made in collected()} == {Tensor}  # no fake ones


def test_a_hook_may_hold_a_result_with_its_gradient_function() -> None:
    collector = Collector()
    net, x = network(collector)
    net(x)
    assert not collector.all[0].is_leaf
    small = fxprune.transform(net, x, ratio=0.5)
    assert small[0].out_features == 8
