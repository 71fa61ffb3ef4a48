"""A table that forward makes on its first call is kept somewhere: it is as before after a run, wherever that is."""

from __future__ import annotations

import collections
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.kept_values import Kept
from fxprune.capture.module_copy import copy_module


def table(size: int) -> Tensor:
    return torch.arange(float(size))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.begin()

    def begin(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x) + self.known()))

    def known(self) -> Tensor:
        raise NotImplementedError


class InAnAttribute(Net):
    def begin(self) -> None:
        self.table = functools.lru_cache(table)

    def known(self) -> Tensor:
        return self.table(8)


class InAList(Net):
    def begin(self) -> None:
        self.tables = [functools.lru_cache(lambda: table(8))]

    def known(self) -> Tensor:
        return self.tables[0]()


class InAClosure(Net):
    def begin(self) -> None:
        made: dict[int, Tensor] = {}
        self.table = lambda: made.setdefault(8, table(8))

    def known(self) -> Tensor:
        return self.table()


class InAVariableOfAClosure(Net):
    def begin(self) -> None:
        made = None

        def known() -> Tensor:
            nonlocal made
            made = table(8) if made is None else made
            return made

        self.table = known

    def known(self) -> Tensor:
        return self.table()


class Keeps:
    """An object that is no data, since it holds a lock: a model and its copy share it."""

    def __init__(self) -> None:
        self.lock, self.made = threading.Lock(), dict[int, Tensor]()

    def get(self) -> Tensor:
        return self.made.setdefault(8, table(8))


class KeepsInAttribute:
    __slots__ = ("made",)

    def get(self) -> Tensor:
        if not hasattr(self, "made"):
            self.made = table(8)
        return self.made


class Table(collections.OrderedDict[int, Tensor]):
    def get(self, *_: Any) -> Any:
        return self.setdefault(8, table(8))


KEEPS: list[Any] = [Keeps(), KeepsInAttribute(), Table()]


class InAnObject(Net):
    def begin(self) -> None:
        self.keeps = Keeps()

    def known(self) -> Tensor:
        return self.keeps.get()


class InAGlobalObject(Net):
    def known(self) -> Tensor:
        return KEEPS[0].get()


class InASlotOfAGlobal(Net):
    def known(self) -> Tensor:
        return KEEPS[1].get()


class InAGlobalOfADerivedClass(Net):
    def known(self) -> Any:
        return KEEPS[2].get()


class InItsClass(Net):
    made: Tensor | None = None

    def known(self) -> Tensor:
        if not hasattr(type(self), "new"):
            type(self).new = table(8)
        if self.made is None:
            type(self).made = table(8)
        return type(self).new + type(self).made


def of_function() -> Tensor:
    if not hasattr(of_function, "made"):
        of_function.made = table(8)
    return of_function.made


class InAFunction(Net):
    def known(self) -> Tensor:
        return of_function()


KINDS: list[type[Net]] = list(Net.__subclasses__())


@pytest.fixture(autouse=True)
def empty() -> None:
    KEEPS[:] = [Keeps(), KeepsInAttribute(), Table()]
    vars(of_function).clear()
    InItsClass.made = None
    if "new" in vars(InItsClass):
        del InItsClass.new


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_original_has_no_fake_tensor_after_a_call(kind: type[Net]) -> None:
    model, x = kind().eval(), torch.ones(2, 3)
    small = fxprune.transform(model, x, ratio=0.5, path="eager")
    assert type(model(x)) is Tensor, "the table that this call makes is real"
    assert type(model.known()) is Tensor
    assert fxprune.record(small).removed


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_table_that_is_there_already_stays(kind: type[Net]) -> None:
    model, x = kind().eval(), torch.ones(2, 3)
    before = [model.known(), model(x)]
    fxprune.transform(model, x, ratio=0.5, path="eager")
    assert torch.equal(model.known(), before[0])
    assert torch.equal(model(x), before[1])


def test_a_copy_fills_its_own_cache_and_has_it_once() -> None:
    model: Any = InAnAttribute()
    model.same = model.table
    copied: Any = copy_module(model, lambda tensor: tensor)
    copied.known()
    assert copied.same is copied.table
    assert copied.table.cache_info().currsize == 1
    assert model.table.cache_info().currsize == 0


class Careless(dict[Any, Any]):
    """A dict whose methods do not do what they say."""

    def raises(self, *_: Any) -> Any:
        raise RuntimeError("no method of it may be called")

    __iter__ = __len__ = items = values = keys = clear = update = raises


def put(value: dict[Any, Any]) -> Callable[[], None]:
    return lambda: dict.__setitem__(value, "new", torch.ones(1))


def test_no_method_of_a_derived_container_is_called() -> None:
    value = Careless()
    kept = Kept((), [value])
    assert kept.unchanged()
    put(value)()
    assert not kept.unchanged()
    kept.restore()
    assert dict.__len__(value) == 0


def test_a_long_table_of_texts_is_data_and_a_long_table_of_numbers_is_none() -> None:
    texts, numbers = ({key: make(key) for key in range(300)} for make in (str, float))
    kept = Kept((), [texts, numbers])
    put(texts)()
    assert kept.unchanged()
    put(numbers)()
    assert not kept.unchanged()
    kept.restore()
    assert "new" in texts
    assert "new" not in numbers


def test_a_variable_of_a_closure_that_is_deleted_or_assigned_again_has_changed() -> None:
    def outer() -> tuple[Any, ...]:
        value: Any = 1.5

        def inner() -> Any:
            return value

        def put(new: Any) -> None:
            nonlocal value
            value = new

        def delete() -> None:
            nonlocal value
            del value

        return inner, put, delete

    inner, put_there, delete = outer()
    kept = Kept((), [inner])
    assert kept.unchanged()
    delete()
    assert not kept.unchanged()
    put_there(torch.ones(1))
    kept.restore()
    assert inner() == 1.5


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_another_order_or_another_key_of_the_same_values_is_a_change(kind: Any) -> None:
    first, second = torch.ones(1), torch.zeros(1)
    table = kind(a=first, b=second)
    kept = Kept((), [table])
    table["a"] = table.pop("a")
    assert not kept.unchanged()
    kept.restore()
    assert list(table) == ["a", "b"]
    assert kept.unchanged()
    table["c"] = table.pop("b")
    assert not kept.unchanged()


def test_real_tensors_of_a_module_in_a_variable_are_its_own() -> None:
    held: Any = nn.Module()
    held.extra = None
    owner = type("Owner", (nn.Module,), {})()
    owner.extra = None
    kept = Kept((), [owner, held])
    owner.extra = torch.ones(1)
    kept.restore()
    assert owner.extra is not None
