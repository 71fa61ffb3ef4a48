"""The tensors of a model by name: listed like torch lists them, and few times in a call."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.tensors import BUFFER, CONSTANT, PARAMETER, Tensors
from fxprune.paths import PATHS, capture


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 4, bias=False)
        self.again, self.block = self.first, nn.Sequential(nn.Linear(4, 4), nn.Identity())
        self.block[0].weight = self.own = nn.Parameter(torch.ones(4, 4))
        self.register_buffer("shift", torch.zeros(4), persistent=False)
        self.register_buffer("shift_again", self.shift)
        self.register_parameter("nothing", None)
        self.plain = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x @ self.own + self.shift + self.plain)
        return self.last(self.norm(self.again(y)))


def test_names_and_order_are_those_of_torch() -> None:
    net = Net()
    tensors = Tensors.of(net)
    pairs = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    assert list(tensors) == [name for name, _ in pairs]
    assert all(tensors[name] is tensor for name, tensor in pairs)
    assert tensors.names(PARAMETER) == tuple(name for name, _ in net.named_parameters())
    assert tensors.names(BUFFER) == tuple(name for name, _ in net.named_buffers())
    assert [n for n in tensors if tensors.entry(n).persistent] == sorted(net.state_dict(), key=list(tensors).index)


def test_tied_tensors_are_listed_once_with_their_other_names() -> None:
    others = {found.name: found.others for found in Tensors.of(Net()).unique if found.others}
    assert others == {
        "own": ("block.0.weight",),
        "first.weight": ("again.weight",),
        "first.bias": ("again.bias",),
        "shift": ("shift_again",),
    }


def test_every_further_name_of_a_tensor_is_listed() -> None:
    net = Net()
    net.third = net.block[0].again = net.first
    others = {found.name: found.others for found in Tensors.of(net).unique}
    assert others["first.bias"] == ("again.bias", "block.0.again.bias", "third.bias")


def test_the_module_that_holds_a_tensor() -> None:
    owners = {found.name: found.owner for found in Tensors.of(Net()).unique}
    assert (owners["own"], owners["norm.running_var"], owners["block.0.bias"]) == ("", "norm", "block.0")


@pytest.mark.parametrize("path", ["fx", "eager"])
def test_constants_are_the_tensors_in_attributes_that_are_not_registered(path: str) -> None:
    net = Net().eval()
    captured = capture(net, ((torch.ones(2, 4),), {}), PATHS[path])
    new = captured.tensors.keys() - Tensors.of(net).keys()
    assert len(new) == 1
    assert torch.equal(captured.tensors[next(iter(new))], net.plain)
    assert captured.tensors.names(CONSTANT) == ((*new,) if path == "eager" else ())  # a graph makes a buffer of it


def test_a_model_without_weights() -> None:
    assert Tensors.of(nn.Linear(2, 3, device="meta")).weightless
    assert not Tensors.of(Net()).weightless
    assert Tensors.of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2, device="meta"))).weightless, "a part has none"


@pytest.mark.parametrize(("path", "at_most"), [("fx", 6), ("eager", 6)])
def test_the_tensors_of_a_model_are_listed_few_times_in_a_call(
    path: str, at_most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed for the model, the graph, the names of the user, and the result: in the proof and in its record."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x, listed = torch.ones(2, 3, 8, 8), Counter[str]()
    fxprune.transform(net, x, ratio=0.5, path=path)

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def listing(module: nn.Module, *args: Any, **options: Any) -> Any:
            if module._modules and options.get("recurse", True):
                listed[name] += 1
            return original(module, *args, **options)

        monkeypatch.setattr(owner, name, listing)

    for name in ("named_parameters", "named_buffers", "of"):
        counted(Tensors if name == "of" else nn.Module, name)
    fxprune.transform(net, x, ratio=0.5, path=path)
    assert listed["of"] > 0
    assert listed.total() <= at_most, listed
