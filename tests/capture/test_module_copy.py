"""A copy of a model around other tensors: changes that its forward makes do not reach the original."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.module_copy import copy_module, deep_copy, deep_copy_with


class Holds(nn.Module):
    """A module with everything in its attributes that belongs to it, and one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.again, self.block = self.first, nn.Sequential(OrderedDict(inner=nn.Linear(2, 2)))
        self.register_buffer("scale", torch.ones(2))
        self.register_parameter("nothing", None)
        self.plain, self.stranger = torch.ones(3), [nn.Linear(1, 1)]
        self.step, self.foreign = self.block.forward, self.stranger[0].forward
        self.cache: dict[str, Any] = {"seen": [], "layer": [self.block], "tensors": (self.plain,)}
        self.numbers = {1, 2}


class Cached(nn.Module):
    """A module with functions in its attributes that read its other attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.cached = functools.lru_cache(maxsize=7)(self.times)
        self.partly = functools.partial(self.times, 3)
        self.state, self.table = SimpleNamespace(seen=[], layer=self), OrderedDict(a=[1])
        self.same = self.state

    def times(self, factor: int) -> int:
        return self.width * factor


def test_functions_in_attributes_read_the_copy_and_data_objects_belong_to_it() -> None:
    net = Cached()
    assert (net.cached(3), net.partly()) == (12, 12)
    copied: Any = copy_module(net, lambda tensor: tensor)
    copied.width = 2
    assert (copied.cached(3), copied.partly(), net.cached(3)) == (6, 6, 12)
    assert copied.cached.cache_parameters()["maxsize"] == 7
    copied.state.seen.append(1)
    copied.table["a"].append(2)
    assert (net.state.seen, net.table) == ([], {"a": [1]})
    assert copied.state.layer is copied
    assert copied.same is copied.state


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])


def test_every_tensor_is_mapped_also_in_attributes_and_containers() -> None:
    net = Holds()
    copied: Any = copy_module(net, lambda tensor: tensor.detach() + 1)
    assert all(torch.equal(t, tensors_of(net)[name] + 1) for name, t in tensors_of(copied).items())
    assert copied.plain.tolist() == [2.0, 2.0, 2.0]
    assert copied.cache["tensors"][0].tolist() == [2.0, 2.0, 2.0]
    assert copied.nothing is None
    assert list(copied.state_dict()) == list(net.state_dict())


def test_modules_and_bound_methods_in_attributes_are_those_of_the_copy() -> None:
    net = Holds()
    copied: Any = copy_module(net, lambda tensor: tensor)
    assert set(map(id, copied.modules())).isdisjoint(map(id, net.modules()))
    assert copied.cache["layer"][0] is copied.block
    assert copied.step.__self__ is copied.block
    assert copied.again is copied.first
    assert copied.stranger[0] is net.stranger[0], "no part of the model"
    assert copied.foreign.__self__ is net.stranger[0]


def test_containers_are_copied_so_that_writing_into_them_changes_the_copy_alone() -> None:
    net = Holds()
    copied: Any = copy_module(net, lambda tensor: tensor)
    copied.numbers.add(3)
    copied.cache["new"] = 1
    copied.cache["seen"].append(1)
    copied.stranger.clear()
    del copied.block.inner
    copied._buffers["scale"] = None
    assert (net.numbers, list(net.cache), net.cache["seen"]) == ({1, 2}, ["seen", "layer", "tensors"], [])
    assert len(net.stranger) == len(net.block) == 1
    assert net.scale is not None


def test_copies_keep_what_an_ordered_dict_has_beside_its_items() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2))
    net.best = net.state_dict()
    for made in (deep_copy_with(net, {}), copy_module(net, lambda tensor: tensor)):
        copied: Any = made
        assert copied.best is not net.best
        assert copied.best._metadata == net.best._metadata == {"": {"version": 1}, "0": {"version": 2}}


def test_a_deep_copy_asks_a_class_each_time_how_it_is_copied_and_does_not_keep_it_alive() -> None:
    class Other(Outer):
        """A class that only this test has."""

    net = nn.Sequential(Other())
    assert deep_copy_with(net, {})[0].layer is not net[0].layer

    def copied(module: Any, memo: dict[int, Any]) -> Any:
        made = copy.copy(module)
        made.copied = True
        return made

    kind: Any = Other
    kind.__deepcopy__ = copied  # as a notebook adds a method to a class
    assert deep_copy_with(net, {})[0].copied
    alive = weakref.ref(Other)
    del Other, kind, net
    gc.collect()
    assert alive() is None


def test_a_deep_copy_of_a_graph_has_the_name_of_its_class() -> None:
    graph = fx.symbolic_trace(Outer())
    around = nn.Sequential(graph, fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))))
    copied = deep_copy(around)
    assert [type(one).__name__ for one in copied] == [type(one).__name__ for one in around] == ["Outer", "Sequential"]
    assert type(copied[0]) is not type(graph)
    x = torch.randn(3, 2)
    assert torch.equal(copied(x), around(x))


class Outer(nn.Module):
    """A class with a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)
