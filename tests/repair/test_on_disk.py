"""Activations that wait in a file."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune._repair.on_disk import Parked
from tests.repair.test_models import Net, batches


def deep(net: Any, x: torch.Tensor) -> torch.Tensor:
    kept = x + 1
    for layer in net.layers:
        x = torch.tanh(layer(x))
    return net.last(x) + kept.sum(1, keepdim=True)


def model() -> tuple[nn.Module, nn.Module, list[Any]]:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)])
    net = Net(deep, layers=layers, last=nn.Linear(16, 3)).eval()
    data = batches(6, count=12)
    return fxprune.transform(net, data[0], ratio=0.5), net, data


def test_results_leave_the_memory_and_come_back() -> None:
    weight, parked = torch.randn(5, 4), Parked()
    with parked.results:
        made = torch.ones(3, 4, dtype=torch.float64) * 2
        view, whole, gone = made.T[1], torch.randn(3, 4) @ weight.T, torch.zeros(1000)
        of_weight, empty = weight[1:], torch.zeros(0)
        del gone
    before = [t.clone() for t in (made, view, whole, weight)]
    assert parked.park()
    assert [t.untyped_storage().nbytes() for t in (made, view, whole)] == [0, 0, 0]
    assert torch.equal(weight, before[3])
    assert of_weight.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
    parked.fetch()
    assert all(map(torch.equal, (made, view, whole, weight), before))
    view += 1
    assert torch.equal(made[:, 1], view)
    assert not empty.numel()
    parked.close()


def test_batches_on_disk_are_not_run_again() -> None:
    small, net, data = model()
    runs = []
    for memory, disk in ((1 << 30, 0), (0, 1 << 30), (0, 0)):
        calls: list[int] = []
        hooks = [each.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1)) for each in (small, net)]
        fxprune.repair(small, net, data, memory=memory, disk=disk)
        for hook in hooks:
            hook.remove()
        runs.append(len(calls))
    in_memory, on_disk, again = runs
    assert 0 < in_memory == on_disk < again


@pytest.mark.parametrize("failing", ["open", "write"])
def test_a_full_disk_costs_time_only(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small, net, data = model()
    wanted = fxprune.repair(small, net, data)
    real, made = tempfile.TemporaryFile, []

    def no_space(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    def full(**options: Any) -> Any:
        made.append(1)
        if failing == "open":
            no_space()
        file = real(**options)
        file.write = no_space
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    found = fxprune.repair(small, net, data, memory=0)
    assert made
    assert fxprune.record(found).repair == fxprune.record(wanted).repair
    assert all(map(torch.equal, found.state_dict().values(), wanted.state_dict().values()))


@pytest.mark.parametrize("name", ["memory", "disk"])
def test_sizes_below_zero_are_refused(name: str) -> None:
    small, net, data = model()
    with pytest.raises(fxprune.FxpruneError, match=f"{name} must be a number of bytes"):
        fxprune.repair(small, net, data, **{name: -1})
