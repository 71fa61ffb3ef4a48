"""Code that calls a layer of the original by a closure: the original's buffers stay, and the user is told of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import costs
from fxprune.capture.kept_buffers import buffers_kept, called_parts


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.bn(self.a(x))))


class Listed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [lambda x: self.a(x), lambda x: torch.relu(self.bn(x)), self.b]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


def around_forward() -> nn.Module:
    net: Any = Net()
    forward = net.forward
    net.forward = lambda x: forward(x) * 2
    return net


def around_a_layer() -> nn.Module:
    net: Any = Net()
    forward = net.bn.forward
    net.bn.forward = lambda x: forward(x)
    return net


def in_a_hook() -> nn.Module:
    net = Net()
    bn = net.bn
    net.a.register_forward_hook(lambda module, args, result: bn(result))
    return net


MODELS = (around_forward, around_a_layer, in_a_hook, Listed)


def results_of(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(), None
        except fxprune.FxpruneError as error:
            return None, error


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", ["transform", "analyze", "cost", "trace"])
def test_the_buffers_stay(make: Callable[[], nn.Module], name: str) -> None:
    net = make().train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    options = {"ratio": 0.5} if name == "transform" else {}
    results_of(lambda: getattr(fxprune, name)(net, torch.randn(5, 3), **options))
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name


RUNS: dict[str, Callable[[nn.Module, Tensor, Path], Any]] = {
    "export": lambda net, x, folder: fxprune.export(net, folder / "net.pt2", x),
    "active_params": lambda net, x, folder: costs.active_params(net, x),
    "cache_bytes": lambda net, x, folder: costs.cache_bytes(net, x),
    "masked": lambda net, x, folder: fxprune.masked(net, {"a.bias": {0: [1]}}),
    "measure": lambda net, x, folder: costs.measure(net, x, rounds=1),
    "pareto": lambda net, x, folder: fxprune.pareto(net, x, budgets=[0.9], progress=False),
    "peak_memory": lambda net, x, folder: costs.peak_memory(net, x),
    "recalibrate": lambda net, x, folder: fxprune.recalibrate(net, [x, x], progress=False),
    "sensitivity": lambda net, x, folder: fxprune.sensitivity(net, x, ratios=[0.5], progress=False),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("make", MODELS)
def test_the_buffers_stay_where_a_model_is_measured_or_written(
    make: Callable[[], nn.Module], name: str, tmp_path: Path
) -> None:
    net = make().train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    results_of(lambda: RUNS[name](net, torch.randn(5, 3), tmp_path))
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_a_warning_names_the_closure_and_what_to_do() -> None:
    with pytest.warns(fxprune.NothingRemovedWarning, match=r'"forward" of the model \(<lambda>, .*refers to the orig'):
        small = fxprune.transform(around_forward(), torch.randn(5, 3), ratio=0.5)
    reasons = fxprune.record(small).reasons
    assert "define forward as a method of its class" in reasons[1]
    assert not any("dtype" in reason for reason in reasons)


def test_each_run_of_the_proof_finds_the_buffers_that_a_hook_writes_as_they_were() -> None:
    """In training mode the hook writes into the original's statistics, which the next run would read."""
    with pytest.warns(fxprune.NothingRemovedWarning, match=r'the forward hook of "a" \(<lambda>.*gets its module'):
        small = fxprune.transform(in_a_hook().train(), torch.randn(5, 3), ratio=0.5)
    assert type(small) is Net
    assert fxprune.record(small).error == 0


def test_an_error_names_the_hook_and_what_to_do() -> None:
    with pytest.raises(fxprune.CaptureError, match='the forward hook of "a"') as refused:
        fxprune.analyze(in_a_hook(), torch.randn(5, 3), path="export")
    assert "a hook gets its module" in refused.value.do
    with pytest.raises(fxprune.CaptureError, match="define forward as a method of its class"):
        fxprune.trace(around_forward(), torch.randn(5, 3))


def test_a_method_of_the_model_is_no_closure() -> None:
    net: Any = Net()
    net.step = net.forward
    assert called_parts(net) == []
    assert len(called_parts(around_a_layer())) == 1


def test_a_large_array_is_put_back() -> None:
    net: Any = Net()
    net.state = np.zeros(1 << 18)
    with buffers_kept(net):
        net.state += 1
    assert not net.state.any()


def test_buffers_of_other_models_are_not_ours_to_put_back() -> None:
    net = Net()
    with buffers_kept(net):
        net(torch.randn(5, 3))
    assert int(net.bn.num_batches_tracked) == 1
