"""Containers in the attributes of modules: what they hold, and copies of them that hold something else.

Containers are lists, tuples, dicts, deques, their subclasses, and *data objects*: `SimpleNamespace`, data classes,
objects with a configuration, other instances of a user's class that hold plain values, and the holders of the standard
library (`UserDict`, `Queue`). An object that holds anything else of the standard library or of torch (a logger, a lock,
a trainer with its loops) is none: such an object is shared by a model and its copies.
"""

from __future__ import annotations

import argparse
import copy
import enum
import functools
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.capture.library_state import give_locks, has_state, is_holder, without_locks
from fxprune.capture.per_class import once_per_class

MOST_PARTS = 256
"""A container with more parts than this holds data, such as a vocabulary: no sizes, and no state."""
MOST_STEPS = 48
"""Containers inside of each other are looked at up to this depth; copies share what is deeper."""

_NOT_THE_USERS = {*sys.stdlib_module_names, "torch", "numpy"} - {"__main__"}
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
_NUMBERS = (int, float, bool, str, type(None))
_LEAVES = (enum.Enum, BaseException, nn.Module, torch.Tensor, type, types.ModuleType)
_CHANGING: tuple[Any, ...] = (OrderedDict, dict, list, deque)
_SEQUENCES, _TABLES = (list, tuple, deque), (dict,)


def is_container(value: Any) -> bool:
    """True if a value is a container."""
    kind = type(value)
    return kind not in _NUMBERS and (issubclass(kind, (*_SEQUENCES, *_TABLES)) or _is_data(value, {}))


def parts(value: Any) -> Mapping[Any, Any]:
    """The values that a container holds: position, key, or name of an attribute with a dot before it -> value.

    A key that is known by its identity, such as a module, stands as its place: a copy has another one.

    >>> parts([4, 8]), parts({"heads": 4}), parts(types.SimpleNamespace(heads=4))
    ({0: 4, 1: 8}, {'heads': 4}, {'.heads': 4})
    """
    if issubclass(type(value), _SEQUENCES):
        return dict(enumerate(items_of(value)))
    if issubclass(type(value), _TABLES):
        return dict(zip(_keys_of(value), dict.values(value), strict=True))
    return {f".{name}": item for name, item in without_locks(value, attributes_of(value)).items()}


def with_parts(value: Any, new: Mapping[Any, Any]) -> Any:
    """A container with other values under its keys. One that can change is changed, of a tuple there is a new one."""
    if issubclass(type(value), tuple):
        return tuple_of(value, [new[position] for position in range(tuple.__len__(value))])
    if issubclass(type(value), (list, deque)):
        base: Any = list if issubclass(type(value), list) else deque
        for position, item in new.items():
            base.__setitem__(value, position, item)
    elif issubclass(type(value), _TABLES):
        for key, now in zip(list(dict.keys(value)), _keys_of(value), strict=True):
            if now in new:
                dict.__setitem__(value, key, new[now])
    else:
        for name, item in new.items():
            object.__setattr__(value, name[1:], item)
        give_locks(value)
    return value


@dataclass(frozen=True)
class KeyAt:
    """The place of a key in the order of its dict, and the name of its class."""

    place: int
    kind: str

    def __repr__(self) -> str:
        return f"<key {self.place}, a {self.kind}>"


def _keys_of(table: Any) -> list[Any]:
    keys = enumerate(dict.keys(table))
    return [KeyAt(place, type(key).__name__) if _is_known_by_identity(key) else key for place, key in keys]


def _is_known_by_identity(key: Any) -> bool:
    kind: Any = type(key)
    if kind in _NUMBERS or issubclass(kind, type):
        return False
    return kind.__hash__ is object.__hash__ or issubclass(kind, (nn.Module, torch.Tensor))


def items_of(sequence: Any) -> list[Any]:
    """The items of a list, tuple or deque, whatever the methods of a class that derives from these say."""
    base: Any = next(base for base in _SEQUENCES if issubclass(type(sequence), base))
    return list(base.__iter__(sequence))


def tuple_of(value: Any, items: list[Any]) -> Any:
    """A tuple of the same class with other items, and the same attributes. A `__new__` of its class is not called: it
    may take something else than the items.
    """
    kind: Any = type(value)
    try:
        new = tuple.__new__(kind, items)
    except TypeError:  # of a class that is not made by Python code, such as `torch.Size`
        return kind(items)
    if kind.__dictoffset__:
        object.__getattribute__(new, "__dict__").update(object.__getattribute__(value, "__dict__"))
    return new


def has_many_parts(value: Any) -> bool:
    """True if a list, tuple, deque or dict has more parts than `MOST_PARTS`. They are not read."""
    return count_of(value) > MOST_PARTS


def count_of(value: Any) -> int:
    """The number of parts of a list, tuple, deque or dict; 0 for any other value."""
    base: Any = next((base for base in (*_SEQUENCES, *_TABLES) if issubclass(type(value), base)), None)
    return 0 if base is None else int(base.__len__(value))


def with_part(container: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """A container with another value at the place where `keys` lead to. Only tuples are replaced, others change."""
    found = dict(parts(container))
    first, rest = keys[0], keys[1:]
    found[first] = with_part(found[first], rest, value) if rest else value
    return with_parts(container, found)


def emptied(value: Any) -> Any:
    """A new object for a container, which `with_parts` fills. A tuple cannot change, and is returned as it is."""
    kind = type(value)
    if issubclass(kind, tuple):
        return value
    if kind in (dict, list) or (kind is OrderedDict and not value.__dict__):  # a state_dict has its metadata there
        return value.copy()
    if not issubclass(kind, (*_SEQUENCES, *_TABLES)):
        return _blank(kind)
    if getattr(value, "__dict__", None) is not value:
        return _shallow(value)
    options: Any = kind  # class Options(dict), which says: self.__dict__ = self
    made = options.__new__(options)
    made.update(value)
    made.__dict__ = made
    return made


def _shallow(value: Any) -> Any:
    """A shallow copy of a list, deque or dict of a derived class, whose methods may raise."""
    try:
        return copy.copy(value)
    except Exception:
        return _filled(_without_items(value), value, lambda part: part)


def cannot_be_copied(value: Any) -> bool:
    """True for a list, deque or dict of the user's class whose methods raise where `copy` calls them."""
    if not type(value).__flags__ & MADE_BY_CODE or isinstance(value, nn.Module) or not _is_asked(type(value)):
        return False
    try:
        copy.copy(value)
    except Exception:
        return True
    return False


def copied_by_items(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy of a list, deque or dict that calls none of its methods. memo: that of `copy.deepcopy`."""
    memo[id(value)] = made = _without_items(value)
    return _filled(made, value, lambda part: copy.deepcopy(part, memo))


@once_per_class
def _is_asked(kind: type) -> bool:
    """True if `copy` calls a method that a class of lists, deques or dicts has of its own, none that is for copies."""
    base = _made_by_python(kind)
    for_copies = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__")
    called = ("items", "__iter__", "__setitem__", "append", "extend", "__getattribute__")
    says = any(getattr(kind, name, None) is not getattr(base, name, None) for name in for_copies)
    return not says and any(getattr(kind, name, None) is not getattr(base, name, None) for name in called)


def _made_by_python(kind: type) -> Any:
    """The class of Python itself that a class derives from."""
    return next(part for part in kind.__mro__ if not part.__flags__ & MADE_BY_CODE)


def _without_items(value: Any) -> Any:
    """A new list, deque or dict of the same class."""
    kind: Any = type(value)
    made = _made_by_python(kind).__new__(kind)
    if isinstance(value, deque):
        deque.__init__(made, (), value.maxlen)
    elif isinstance(value, defaultdict):
        made.default_factory = value.default_factory
    return made


def _filled(made: Any, value: Any, of: Callable[[Any], Any]) -> Any:
    """A new list, deque or dict, with what `of` gives for the items and the attributes of another one."""
    base: Any = next(base for base in _CHANGING if isinstance(value, base))
    if isinstance(value, dict):
        for key, item in list(dict.items(value)):
            base.__setitem__(made, of(key), of(item))
    else:
        base.extend(made, [of(item) for item in items_of(value)])
    for name, item in attributes_of(value).items():
        object.__setattr__(made, name, of(item))
    return made


def key_text(key: Any) -> str:
    """A key of a container as it stands in code: `[0]`, `['heads']`, `.heads`."""
    return key if isinstance(key, str) and key.startswith(".") else f"[{key!r}]"


# -- data objects -----------------------------------------------------------------------------------------


def found_in(
    value: Any, wanted: Callable[[Any], bool], seen: dict[int, Any], keys: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The wanted values in a value and in the containers there, each with the keys that lead to it.

    What is wanted is not looked into, nor are containers of more than `MOST_PARTS` parts.

    seen: the containers that were looked at before, by id; they are left out, and new ones are added.
    """
    if wanted(value):
        yield keys, value
    elif id(value) not in seen and len(keys) < MOST_STEPS and not has_many_parts(value) and is_container(value):
        if not isinstance(value, tuple):
            seen[id(value)] = value
        found = parts(value)
        if len(found) <= MOST_PARTS:
            for key, item in found.items():
                yield from found_in(item, wanted, seen, (*keys, key))


def _is_data(value: Any, known: dict[int, bool], steps: int = 0) -> bool:
    """True if a value is a data object. known: id of an object -> whether it is one. steps: how far away it is."""
    kind = type(value)
    if id(value) in known:
        return known[id(value)]
    if issubclass(kind, _LEAVES) or not _has_attributes(kind):
        return False
    users = kind in _NAMESPACES or is_holder(kind) or kind.__module__.partition(".")[0] not in _NOT_THE_USERS
    known[id(value)] = True  # for an object that holds itself
    known[id(value)] = users and _blank(kind) is not None and all(_plain(v, known, steps) for v in _held(value))
    return known[id(value)]


def _held(value: Any) -> Iterator[Any]:
    """The values in the attributes of an object. None of them is read through a method of its class."""
    found = without_locks(value, attributes_of(value))
    yield from found.values()
    if not found:
        yield _NOTHING  # an object without attributes is known by its identity, so it has no copies


def _plain(value: Any, known: dict[int, bool], steps: int) -> bool:
    """True if a value may stand in a data object: a number, a tensor, a module, a function, or a container."""
    kind = type(value)
    if value is _NOTHING or steps > MOST_STEPS:
        return False
    if has_many_parts(value):
        return True
    if issubclass(kind, (*_SEQUENCES, *_TABLES)):
        if id(value) not in known:
            known[id(value)] = True
            known[id(value)] = all(_plain(v, known, steps + 1) for v in parts(value).values())
        return known[id(value)]
    if issubclass(kind, _LEAVES) or kind is types.FunctionType or has_state(kind) or not _has_attributes(kind):
        return True
    return kind is functools.partial or _is_data(value, known, steps + 1)


_NOTHING = object()


def _has_attributes(kind: type) -> bool:
    """True if the instances of a class have attributes of their own. The class is one that Python code has made."""
    return kind in _NAMESPACES or bool(kind.__flags__ & MADE_BY_CODE and (kind.__dictoffset__ or any(slots_of(kind))))


MADE_BY_CODE = 1 << 9
"""`Py_TPFLAGS_HEAPTYPE`, which the classes of a `class` statement have."""


@once_per_class
def slots_of(kind: type) -> tuple[str, ...]:
    """The names of the attributes of a class that stand in slots."""
    found = []
    for part in kind.__mro__:
        own = part.__dict__.get("__slots__", ())
        for name in (own,) if isinstance(own, str) else own:
            if name not in ("__dict__", "__weakref__"):
                hidden = name.startswith("__") and not name.endswith("__")
                found.append(f"_{part.__name__.lstrip('_')}{name}" if hidden else name)
    return tuple(found)


def attributes_of(value: Any) -> Mapping[str, Any]:
    """The attributes of an object by name."""
    found: dict[str, Any] = {}
    for name in slots_of(type(value)):
        try:
            found[name] = object.__getattribute__(value, name)
        except AttributeError:  # a slot that nothing was assigned to
            continue
    if type(value).__dictoffset__:
        found.update(object.__getattribute__(value, "__dict__"))
    return found


def _blank(kind: type) -> Any:
    """A new object of a class, without any attribute; None where only the class itself can make one."""
    try:
        return types.SimpleNamespace() if kind is types.SimpleNamespace else object.__new__(kind)
    except TypeError:
        return None


# -- copies -----------------------------------------------------------------------------------------------


def map_parts(value: Any, made: dict[int, Any], function: Callable[[Any], Any]) -> Any:
    """A copy of a container, whose parts are those that `function` returns for the original ones.

    made: id of a container -> its copy, for those that are held in several places, and for those that hold themselves.
        The originals must stay alive meanwhile.
    """
    if id(value) in made:
        return made[id(value)]
    made[id(value)] = new = emptied(value)
    found = parts(value)
    mapped = {key: function(item) for key, item in found.items()}
    if new is value and all(mapped[key] is found[key] for key in found):
        return value
    made[id(value)] = with_parts(new, mapped)
    return made[id(value)]
