"""Other threads run models while a transform runs, at every one of its stages."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as torch_module

import fxprune
from fxprune.capture.process_state import module_hooks

LIMIT = 20
"""Seconds after which a thread that waits gives up, and the test fails."""


class Meeting(nn.Module):
    """A network that calls `meet(stage)` in the middle of its forward, where the stage is what runs it."""

    meet: Callable[[str], None] = staticmethod(lambda stage: None)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.last, self.own = nn.Linear(8, 3), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x + self.own)
        self.meet(stage_of(x))
        return self.last(h.relu())


def stage_of(x: Any) -> str:
    """The stage of a transform that runs a forward on `x`."""
    if not isinstance(x, Tensor):
        return "trace"
    if torch.compiler.is_exporting():
        return "export"
    if isinstance(x, FakeTensor):
        return "walk"
    return "proof" if x.dtype == torch.float64 else "usual"


STAGES = {"fx": {"trace", "proof"}, "eager": {"walk", "proof"}, "export": {"export", "proof"}}
"""Path -> the stages of a transform in which the user's own forward runs."""

X = torch.arange(8.0).reshape(2, 4)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.mark.parametrize("path", STAGES)
@pytest.mark.parametrize("same", [True, False], ids=["the same model", "another model"])
def test_a_forward_in_another_thread_gives_its_numbers_at_every_stage(
    path: str, same: bool, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Meeting().eval()
    other = net if same else nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 2)).eval()
    expected, small, main = other(X), fxprune.transform(net, X, ratio=0.5, path=path), threading.get_ident()
    stages, found = set[str](), list[Tensor]()

    def meet(stage: str) -> None:
        if threading.get_ident() == main:
            stages.add(stage)
            found.append(pool.submit(other, X).result(LIMIT))

    monkeypatch.setattr(Meeting, "meet", staticmethod(meet))
    again = fxprune.transform(net, X, ratio=0.5, path=path)
    assert STAGES[path] <= stages
    assert len(found) > 1
    assert all(torch.equal(numbers, expected) for numbers in found)
    first, second = fxprune.record(small), fxprune.record(again)
    closure = tuple(reason for reason in second.reasons if reason.startswith('the variable "other"'))
    assert len(closure) == (same and path == "eager")  # `meet` has the model in its closure
    assert dataclasses.replace(second, reasons=second.reasons[len(closure) :]) == first
    assert torch.equal(again(X), small(X))


WHEN = [("before", "after"), ("before", "during"), ("during", "after")]


@pytest.mark.parametrize("path", STAGES)
@pytest.mark.parametrize(("begins", "ends"), WHEN, ids=[f"from {a} to {b}" for a, b in WHEN])
def test_a_forward_may_begin_and_end_at_any_time(
    path: str, begins: str, ends: str, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forward of the other thread stops in its middle, and goes on when the transform is elsewhere."""
    net, main = Meeting().eval(), threading.get_ident()
    expected, entered, go, running = net(X), threading.Event(), threading.Event(), list[Future[Tensor]]()

    def begin() -> None:
        running.append(pool.submit(net, X))
        assert entered.wait(LIMIT)

    def meet(stage: str) -> None:
        if threading.get_ident() != main:
            entered.set()
            assert go.wait(LIMIT)
            return
        if begins == "during" and not running:
            begin()
        if ends == "during":
            go.set()
            running[0].result(LIMIT)

    monkeypatch.setattr(Meeting, "meet", staticmethod(meet))
    try:
        if begins == "before":
            begin()
        small = fxprune.transform(net, X, ratio=0.5, path=path)
    finally:
        go.set()
    assert torch.equal(running[0].result(LIMIT), expected)
    assert fxprune.record(small).path == path


def test_hooks_that_are_removed_while_another_thread_calls_them_do_nothing(pool: ThreadPoolExecutor) -> None:
    """Torch calls a hook without the keyword arguments, if it was removed after the call began."""
    seen: list[Any] = []
    with module_hooks(lambda *call: seen.append(call), lambda *call: seen.append(call)):
        hook = next(reversed(torch_module._global_forward_hooks.values()))
        pool.submit(hook, nn.Identity(), (X,), X).result(LIMIT)
        pool.submit(nn.Identity(), X).result(LIMIT)
        assert not seen
        nn.Identity()(X)
    assert len(seen) == 2


def test_two_transforms_at_once_give_what_one_after_the_other_gives() -> None:
    paths = [*STAGES, *STAGES]
    nets, barrier = [Meeting().eval() for _ in paths], threading.Barrier(len(paths))
    expected = [fxprune.transform(net, X, ratio=0.5, path=path) for net, path in zip(nets, paths, strict=True)]

    def small(number: int) -> nn.Module:
        barrier.wait(LIMIT)
        return fxprune.transform(nets[number], X, ratio=0.5, path=paths[number])

    with ThreadPoolExecutor(len(paths)) as pool:
        found = list(pool.map(small, range(len(paths))))
    for one, other in zip(found, expected, strict=True):
        assert fxprune.record(one) == fxprune.record(other)
        assert torch.equal(one(X), other(X))
