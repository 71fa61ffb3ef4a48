"""Data of the user's in an attribute: it is copied as it is, whatever it holds and however much, or left alone."""

from __future__ import annotations

import collections
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.containers import found_in, is_container
from fxprune.capture.module_copy import copy_module, deep_copy
from fxprune.capture.state import State
from fxprune.proof.zeroed import zero_slots
from fxprune.rewrite.derived import numbers
from fxprune.rewrite.tensors import cut


class Pair(tuple[Any, ...]):
    def __new__(cls, *items: Any) -> Pair:
        return super().__new__(cls, items)


class Sized(collections.namedtuple("Sized", "width depth")):
    def __new__(cls, width: int) -> Sized:
        return super().__new__(cls, width, 2)


class Net(nn.Module):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.a, self.b, self.held = nn.Linear(3, 8), nn.Linear(8, 2), held

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def small_of(net: Net) -> Any:
    return fxprune.transform(net, torch.ones(2, 3), ratio=0.5)


@pytest.mark.parametrize("held", [Pair(16, 5), Sized(7), [Pair(1, Pair(2, [3]))]], ids=["tuple", "named", "nested"])
def test_a_tuple_whose_class_takes_something_else_stays_what_it_is(held: Any) -> None:
    net = Net(held)
    for copied in (small_of(net), fxprune.masked(net, {}), copy_module(net, lambda tensor: tensor.clone())):
        assert copied.held == held
        assert type(copied.held) is type(held)


def test_a_tuple_of_such_a_class_holds_the_modules_of_its_copy_and_its_attributes() -> None:
    net = Net(None)
    net.held = Pair(net.a, [net.b])
    net.held.name = "both"
    for copied in (small_of(net), deep_copy(net), copy_module(net, lambda tensor: tensor.clone())):
        assert copied.held[0] is copied.a
        assert copied.held[1][0] is copied.b
        assert copied.held.name == "both"


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def test_containers_that_hold_themselves_and_deep_ones_are_copied() -> None:
    itself: list[Any] = []
    itself.append(itself)
    pair: Any = ([],)
    pair[0].append(pair)
    for held in (itself, {"a": itself}, pair, nested(200)):
        assert small_of(Net(held)).a.out_features == 4
    assert numbers(Net(itself)) == {}


def test_very_deep_containers_are_looked_at_up_to_a_depth() -> None:
    class Linked:
        def __init__(self, after: Any) -> None:
            self.after = after

    linked = None
    for _ in range(3000):
        linked = Linked(linked)
    assert not is_container(linked)
    net = Net(nested(3000))
    assert copy_module(net, lambda tensor: tensor).held is not net.held
    with pytest.warns(fxprune.ClassLostWarning, match="held, of type Linked"):
        small_of(Net(linked))
    assert list(found_in(nested(3000), lambda value: value == 1, {})) == []


def test_python_modules_and_long_lists_are_not_followed() -> None:
    module: Any = types.ModuleType("held")
    module.count = 1
    net: Any = Net({"module": module, "long": list(range(1000))})
    before = State(net)
    module.count = 2
    assert not before.changed()
    net.held["long"].append(1)
    assert before.changed()


class Careless(dict[Any, Any]):
    """A dict whose methods raise."""

    def raises(self, *_: Any) -> Any:
        raise RuntimeError("no method of it may be called")

    __iter__ = __len__ = items = values = keys = raises


class CarelessList(list[Any]):
    __iter__ = __len__ = Careless.raises


def test_a_container_whose_methods_raise_is_copied() -> None:
    table, items = Careless(a=1), CarelessList([1, 2])
    copied: Any = copy_module(Net((table, items)), lambda tensor: tensor)
    assert dict.__eq__(copied.held[0], table)
    assert copied.held[0] is not table
    assert list.__eq__(copied.held[1], items)
    assert copied.held[1] is not items


def test_removed_slots_that_share_memory_are_zero_alone() -> None:
    tensor = torch.arange(1.0, 8.0).as_strided((4, 4), (1, 1))
    expected = tensor.clone()
    expected[1] = 0
    zero_slots(tensor, {0: [1]})
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_slots_of_float8_are_set_to_zero(kind: torch.dtype) -> None:
    tensor = torch.ones(3, 2).to(kind)
    zero_slots(tensor, {0: [1]})
    assert tensor.float().tolist() == [[1, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint32, torch.uint64], ids=str)
def test_unsigned_integers_that_are_not_contiguous_are_cut(kind: torch.dtype) -> None:
    values = torch.arange(10).to(kind)[::2]
    assert cut(values, {0: np.array([True, False, True, True, False])}).tolist() == [0, 4, 6]


class ByModule(nn.Module):
    """Forward finds numbers and tensors under modules and parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.shifts = {self.b: torch.arange(8.0), self.a: [torch.arange(8.0) * 2], nn.ReLU(): torch.ones(3)}
        self.by_weight = {self.b.weight: (1, torch.arange(8.0) + 1)}
        self.widths: dict[nn.Module, int] = {self.a: 8, self.b: 8}
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x)) + self.shifts[self.b] + self.shifts[self.a][0]
        h = h.view(-1, self.widths[self.b]) * self.by_weight[self.b.weight][1]
        return self.c(h + self.b(h))


def test_what_stands_under_a_module_or_a_parameter_gets_smaller_and_is_loaded(tmp_path: Path) -> None:
    net, x = ByModule(), torch.randn(4, 3, dtype=torch.float64)
    small = fxprune.transform(net, x, ratio=0.5, path="eager")
    assert small.shifts[small.b].shape == small.shifts[small.a][0].shape == (4,)
    assert list(small.widths) == [small.a, small.b]
    assert (net.widths[net.b], small.widths[small.b]) == (8, 4)
    assert torch.allclose(small(x), fxprune.masked(net, fxprune.record(small).removed)(x), rtol=0, atol=1e-12)
    assert {"shifts[<key 0, a Linear>]", "widths[<key 1, a Linear>]"} <= {
        f"{size.at}{size.name}" for size in fxprune.record(small).plan.sizes
    }
    fxprune.save(small, tmp_path / "small.safetensors")
    with pytest.raises(fxprune.PlanError, match="needs example inputs to be loaded"):
        fxprune.load(tmp_path / "small.safetensors", into=ByModule())
    loaded = fxprune.load(tmp_path / "small.safetensors", into=ByModule(), example_inputs=x)
    assert torch.equal(loaded(x), small(x))


def packed() -> dict[str, Tensor]:
    rows = [torch.randn(2), torch.randn(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "quantized": torch.quantize_per_tensor(torch.randn(8), 0.1, 0, torch.qint8),
            "nested": torch.nested.nested_tensor(rows),
            "jagged": torch.nested.nested_tensor(rows, layout=torch.jagged),
        }


@pytest.mark.parametrize("kind", ["quantized", "nested", "jagged"])
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_quantized_and_nested_tensors_are_copied_as_they_are(kind: str) -> None:
    net: Any = Net([packed()[kind], packed()[kind]])
    net.alone, net.a.weight.held = packed()[kind], packed()[kind]
    small: Any = fxprune.transform(net, torch.ones(2, 3), ratio=0.5, path="eager")
    assert small.a.out_features == 4
    reference: Any = fxprune.masked(net, fxprune.record(small).removed)
    for made in (small, reference):
        ours, theirs = [(one.alone, one.held[1], one.a.weight.held) for one in (made, net)]
        for one, other in zip(ours, theirs, strict=True):
            assert one is not other
            assert str(one) == str(other)
    assert torch.allclose(small(torch.ones(2, 3)), reference(torch.ones(2, 3)))


class Closed:
    """Methods that raise, for those that read or write a container as `copy` does."""

    def _closed(self, *given: Any) -> Any:
        raise RuntimeError("closed")

    items = keys = values = __iter__ = __setitem__ = append = extend = _closed


class ClosedDict(Closed, dict[Any, Any]):
    pass


class ClosedList(Closed, list[Any]):
    pass


class ClosedDeque(Closed, collections.deque[Any]):
    pass


class ClosedDefaults(Closed, collections.defaultdict[Any, Any]):
    pass


class ClosedOrdered(Closed, collections.OrderedDict[Any, Any]):
    pass


@pytest.mark.parametrize("kind", [ClosedDict, ClosedList, ClosedDeque, ClosedDefaults, ClosedOrdered])
def test_containers_whose_methods_raise_are_copied_by_their_items(kind: Any) -> None:
    net: Any = Net(None)
    base = next(part for part in kind.__mro__ if part.__module__ in ("builtins", "collections"))
    holds_pairs = issubclass(kind, dict)
    net.held = kind(list) if kind is ClosedDefaults else kind()
    for key, item in (("layer", net.a), ("again", net.held), ("width", 8)):
        base.__setitem__(net.held, key, item) if holds_pairs else base.append(net.held, item)
    net.held.name = net.b
    small: Any = fxprune.transform(net, torch.ones(2, 3), ratio=0.5)
    for made in (small, fxprune.masked(net, {})):
        found = list(base.values(made.held)) if holds_pairs else list(base.__iter__(made.held))
        assert type(made.held) is kind
        assert found[0] is made.a
        assert found[1] is made.held
        assert made.held.name is made.b
        assert getattr(made.held, "default_factory", None) is getattr(net.held, "default_factory", None)
    assert type(small) is Net
