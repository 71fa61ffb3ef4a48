"""Modules and tensors under several names have all of them in a traced graph too."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune

C = 8


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(C, C), nn.Parameter(torch.randn(C))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


class SharedBlock(nn.Module):
    """A block that two lists have, as the position terms of CoaT."""

    def __init__(self) -> None:
        super().__init__()
        block = Inner()
        self.first, self.stages = nn.Linear(4, C), nn.ModuleList([block])
        self.named, self.last = nn.ModuleDict({"again": block}), nn.Linear(C, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.stages[0](h) + self.named["again"](h))


class SecondOfALayer(nn.Module):
    """A layer of torch, one that is only reached under its second name, and a block inside of itself shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, C), nn.Linear(C, 3)
        self.head, self.blocks = self.last, nn.Sequential(Inner(), nn.ReLU())
        self.blocks.append(self.blocks[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.first(x)))


class TiedTensors(nn.Module):
    """A parameter and a buffer with two names, and a weight that another layer owns and that is read there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, C, bias=False), nn.Linear(C, 3)
        self.scale = nn.Parameter(torch.randn(C))
        self.again = self.scale
        self.register_buffer("shift", torch.randn(C))
        self.register_buffer("moved", self.shift)
        self.middle, self.holder = nn.Linear(C, C, bias=False), nn.Module()
        self.holder.weight = self.middle.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self.first(x)) * self.again + self.moved
        return self.last(functional.linear(torch.relu(h), self.holder.weight))


class NotInStateDict(nn.Module):
    """A buffer that `state_dict` has under one of its names only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, C), nn.Linear(C, 3)
        self.register_buffer("shift", torch.randn(C))
        self.register_buffer("hidden", self.shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + self.shift + self.hidden)


KINDS = [SharedBlock, SecondOfALayer, TiedTensors, NotInStateDict]


@pytest.fixture(autouse=True)
def in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)  # `Module.double` makes two of a buffer with two names
    yield
    torch.set_default_dtype(torch.float32)


def groups_of_names(model: nn.Module) -> set[frozenset[str]]:
    """The names of each tensor, and of each module that has several."""
    found: dict[int, set[str]] = {}
    for named in (model.named_parameters, model.named_buffers, model.named_modules):
        for name, value in named(remove_duplicate=False):
            found.setdefault(id(value), set()).add(name)
    tensors = {id(t) for t in (*model.parameters(), *model.buffers())}
    return {frozenset(names) for key, names in found.items() if len(names) > 1 or key in tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_graph_has_every_name(kind: type[nn.Module]) -> None:
    net = kind().eval()
    traced = fxprune.trace(net, torch.randn(2, 4))
    assert list(traced.state_dict()) == list(net.state_dict())
    assert groups_of_names(traced) == groups_of_names(net)
    assert [name for name, _ in traced.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert {module.training for module in traced.modules()} == {False}


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_graph_has_every_name(kind: type[nn.Module]) -> None:
    net, x = kind().eval(), torch.randn(2, 4)
    small = fxprune.transform(net, x, ratio=0.5, path="fx")
    assert groups_of_names(small) == groups_of_names(net)
    assert list(small.state_dict()) == list(net.state_dict())
    assert torch.allclose(small(x), fxprune.masked(net, fxprune.record(small).removed)(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_files_of_a_small_graph_have_every_name_below_the_root(kind: type[nn.Module]) -> None:
    net, x = nn.Sequential(kind()).eval(), torch.randn(2, 4)  # torch itself drops second names of the root's own parts
    small = fxprune.transform(net, x, ratio=0.5, path="fx")
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    for other in (copy.deepcopy(small), torch.load(file, weights_only=False)):
        assert groups_of_names(other) == groups_of_names(net)
        assert torch.equal(other(x), small(x))


def test_a_change_through_one_name_is_seen_through_the_other() -> None:
    x = torch.randn(2, 4)
    small = fxprune.transform(SharedBlock().eval(), x, ratio=0.5, path="fx")
    before = small(x)
    with torch.no_grad():
        small.get_parameter("named.again.scale").mul_(2)
        small.get_parameter("named.again.layer.weight").mul_(2)
    assert small.get_submodule("named.again") is small.get_submodule("stages.0")
    assert not torch.allclose(small(x), before)


def test_what_the_graph_does_not_read_stays_away() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.unused = nn.Linear(4, C), Inner()
            self.again = self.unused

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x)

    assert list(fxprune.trace(Net(), torch.randn(2, 4)).state_dict()) == ["first.weight", "first.bias"]
