"""Runs use copies of a model, and what a closure writes into the attributes of the model itself is put back."""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import costs
from fxprune.capture.kept_attributes import KeptAttributes


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.calls, self.last = 0, None
        self.log, self.seen, self.recent, self.names = [1.5], {"a": 1}, deque([0], 4), {"a"}

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def around_forward() -> nn.Module:
    """A model whose forward is wrapped by a function that counts its calls."""
    net: Any = Net()
    forward = net.forward

    def counted(x: Tensor) -> Tensor:
        net.calls += 1
        net.a.calls = net.calls
        net.last = x
        net.log.append(net.calls)
        net.seen["a"] = net.seen[net.calls] = net.calls
        net.recent.append(net.calls)
        net.names.add(str(net.calls))
        net.b.register_buffer("shift", torch.zeros(2))
        del net.b.in_features
        net.b.in_features = 8
        return forward(x)

    net.forward = counted
    return net.eval()


def in_a_hook() -> nn.Module:
    net: Any = Net()

    def counted(module: nn.Module, args: Any) -> None:
        net.calls += 1

    net.b.register_forward_pre_hook(counted)
    return net.eval()


def state_of(net: Any) -> Any:
    """Everything that the runs may have changed."""
    attributes = {(path, name) for path, module in net.named_modules() for name in module.__dict__}
    held = [list(net.log), dict(net.seen), list(net.recent), set(net.names)]
    return net.calls, net.last, attributes, held, [name for name, _ in net.named_buffers()], net.training


RUNS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "transform": lambda net, x: fxprune.transform(net, x, ratio=0.5),
    "analyze": lambda net, x: fxprune.analyze(net, x),
    "trace": lambda net, x: fxprune.trace(net, x),
    "cost": lambda net, x: fxprune.cost(net, x),
    "measure": lambda net, x: costs.measure(net, x, rounds=1),
    "peak_memory": lambda net, x: costs.peak_memory(net, x),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("make", [around_forward, in_a_hook])
def test_the_attributes_stay(make: Callable[[], nn.Module], name: str) -> None:
    net = make()
    before = state_of(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(fxprune.FxpruneError):  # some name the closure, and end
            RUNS[name](net, torch.randn(5, 3))
    assert state_of(net) == before


def test_a_call_in_another_thread_is_not_undone() -> None:
    """The model has no closure, so no run of fxprune has counted."""
    net: Any = Net()
    kept = KeptAttributes(net, lambda: False)
    net.calls = 3
    kept.restore(mode=True)
    assert net.calls == 3


def test_the_mode_is_put_back_at_the_end() -> None:
    net = Net().eval()
    kept = KeptAttributes(net, lambda: True)
    net.train()
    kept.restore(mode=False)
    assert net.training
    kept.restore(mode=True)
    assert not net.training
    assert not net.a.training
