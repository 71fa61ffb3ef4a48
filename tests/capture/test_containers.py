"""Containers: what they hold, and copies of them that hold something else."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import logging
import types
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest
import torch

from fxprune.capture.containers import is_container, key_text, map_parts, parts

Size = namedtuple("Size", "height width")


@dataclasses.dataclass
class Options:
    heads: int


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    heads: int


class Slots:
    __slots__ = ("__hidden", "heads", "unset")

    def __init__(self, heads: int) -> None:
        self.heads = self.__hidden = heads


class Renamed:
    """A configuration that gives attributes other names, and reads none by its own."""

    def __init__(self, heads: int) -> None:
        self.n_head = heads

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, {"num_heads": "n_head"}.get(name, name))

    def __setattr__(self, name: str, value: Any) -> None:
        assert type(value) is int, "set through the class"
        object.__setattr__(self, name, value)


class Attributes(dict):
    def __init__(self, **items: int) -> None:
        super().__init__(items)
        self.__dict__ = self


CONTAINERS = {
    "list": ([4], {0: 4}),
    "tuple": ((4,), {0: 4}),
    "size": (torch.Size([4]), {0: 4}),
    "named tuple": (Size(4, 5), {0: 4, 1: 5}),
    "deque": (deque([4], maxlen=3), {0: 4}),
    "dict": ({"heads": 4}, {"heads": 4}),
    "ordered dict": (OrderedDict(heads=4), {"heads": 4}),
    "dict with a default": (defaultdict(int, heads=4), {"heads": 4}),
    "dict with attributes": (Attributes(heads=4), {"heads": 4}),
    "simple namespace": (types.SimpleNamespace(heads=4), {".heads": 4}),
    "arguments": (argparse.Namespace(heads=4), {".heads": 4}),
    "data class": (Options(4), {".heads": 4}),
    "frozen data class": (Frozen(4), {".heads": 4}),
    "slots": (Slots(4), {"._Slots__hidden": 4, ".heads": 4}),
    "attributes with other names": (Renamed(4), {".n_head": 4}),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_copy_of_a_container_holds_other_values_and_leaves_the_original_alone(name: str) -> None:
    value, held = CONTAINERS[name]
    assert is_container(value)
    assert parts(value) == held
    made = map_parts(value, {}, lambda item: item * 2)
    assert type(made) is type(value)
    assert parts(made) == {key: item * 2 for key, item in held.items()}
    assert parts(value) == held


def test_a_dict_whose_attributes_are_its_items_stays_one() -> None:
    made = map_parts(Attributes(heads=4), {}, lambda item: item * 2)
    made["width"] = 3
    assert (made.heads, made.width) == (8, 3)
    assert map_parts(defaultdict(int, a=1), {}, lambda item: item)["b"] == 0
    assert map_parts(deque([4], maxlen=3), {}, lambda item: item).maxlen == 3


class Colour(enum.Enum):
    RED = 4


class Marker:
    """An object that is known by its identity."""


class WithLogger:
    def __init__(self) -> None:
        self.heads, self.log = 4, logging.getLogger(__name__)


class Deep(WithLogger):
    def __init__(self) -> None:
        self.inner = [{"with": WithLogger()}]


OTHERS = [4, "text", None, torch.ones(2), Colour.RED, Marker(), WithLogger(), Deep(), logging.getLogger(), Options, len]


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: str(value)[:20])
def test_values_that_have_no_copies_are_no_containers(value: Any) -> None:
    assert not is_container(value)


def test_an_object_that_holds_itself_is_copied_once() -> None:
    value = types.SimpleNamespace(heads=4)
    value.me, value.more = value, [value]
    made: dict[int, Any] = {}

    def function(item: Any) -> Any:
        return map_parts(item, made, function) if is_container(item) else item

    new = function(value)
    assert new is not value
    assert new.me is new is new.more[0]


def test_keys_read_as_in_code() -> None:
    assert "x" + "".join(map(key_text, [0, "heads", ".width", (1, 2)])) == "x[0]['heads'].width[(1, 2)]"
