"""All objects that a model holds, however deep: one walk, for its copies and for a model that takes over a small one.

A copy must refer to nothing of its original. `copy.deepcopy` sees to that where it copies, but gives weak references
and functions with a cache back as they are, and a `__deepcopy__` of the user's may share what it likes.
"""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from fxprune.capture.containers import attributes_of, items_of, tuple_of
from fxprune.capture.given_attributes import given_attributes
from fxprune.capture.per_class import once_per_class
from fxprune.capture.weak_references import is_weak, strong_parts, with_referents

CACHED_FUNCTION: Any = type(functools.lru_cache(len))
"""The type of a function with a cache."""

_PLAIN = frozenset({int, float, bool, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size})
_LEAVES = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
_SEQUENCES, _SETS = (list, tuple, deque), (set, frozenset)
_CHANGED = frozenset({dict, OrderedDict, list, set, deque})
"""The types of objects whose parts are changed where they are."""
_INTERNAL = ("torch._", "torch.fx", "torch.jit", "torch.distributed", "torch.export", "fxprune.")
"""Objects of these are no part of a model, unless they are modules: graphs, operations, modes, process groups."""


def held_by(root: Any) -> Iterator[Any]:
    """Every object that `root` holds, itself first: in attributes, slots, items, keys, hooks, partial functions, and
    attributes of parameters.

    Not what it refers to weakly, and not what a function has in its closure, which copies share. Empty containers are
    left out: a module has twenty.
    """
    seen: dict[int, Any] = {}
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen[id(one)] = one
            yield one
            parts = [part for part in parts_held_by(one) if type(part) not in _PLAIN and id(part) not in seen]
            waiting += [part for part in parts if type(part) not in _CHANGED or part]


def redirect(root: Any, of: Mapping[int, Any], fixed: Container[int] = ()) -> None:
    """Let everything that `root` holds refer to other objects, weakly or not. Changes what it holds.

    of: id of an object -> the one to refer to instead. fixed: the ids of objects that stay as they are, since a model
    and its copy share them.
    """
    redirecting = _Redirecting(of)
    for one in list(held_by(root)):
        if id(one) not in fixed:
            redirecting.change(one)


class _Redirecting:
    """The object that each part of a model becomes. There is one new object for each that cannot change.

    of: id of an object -> the one to refer to instead.
    """

    def __init__(self, of: Mapping[int, Any]) -> None:
        self._of = of
        self._made: dict[int, tuple[Any, Any]] = {}  # id -> before, which stays alive, and after

    def change(self, one: Any) -> None:
        """Give an object the new parts, if it can change."""
        kind, now = type(one), self.now
        if issubclass(kind, dict):
            _change_table(one, now)
        elif issubclass(kind, (list, deque)):
            write: Callable[..., None] = list.__setitem__ if issubclass(kind, list) else deque.__setitem__
            for position, part in enumerate(items_of(one)):
                if now(part) is not part:
                    write(one, position, now(part))
        elif issubclass(kind, set):
            new = [now(part) for part in set.__iter__(one)]
            if any(part not in one for part in new):
                set.clear(one)
                set.update(one, new)
        if _has_own_attributes(kind):
            own = object.__getattribute__(one, "__dict__") if kind.__dictoffset__ else {}
            for name, part in _attributes(one).items():
                if type(part) not in _PLAIN and now(part) is not part:
                    if name in own:
                        own[name] = now(part)
                    else:
                        object.__setattr__(one, name, now(part))

    def now(self, value: Any) -> Any:
        """The object to refer to instead of `value`; itself if that can change, or has nothing else in it."""
        if id(value) in self._of:
            return self._of[id(value)]
        if type(value) in _PLAIN or type(value) in _CHANGED:
            return value
        if id(value) not in self._made:
            self._made[id(value)] = value, _with_parts(value, self.now)
        return self._made[id(value)][1]


def _with_parts(value: Any, now: Callable[[Any], Any]) -> Any:
    """A new object in the place of one that cannot change, with what `now` gives for its parts; itself if all stay."""
    kind: Any = type(value)
    if is_weak(value):
        return with_referents(value, now)
    if kind is types.MethodType:
        owner = now(value.__self__)
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    if kind is CACHED_FUNCTION:
        function = now(value.__wrapped__)
        unchanged = function is value.__wrapped__
        return value if unchanged else functools.lru_cache(**value.cache_parameters())(function)
    if issubclass(kind, functools.partial):
        old = (value.func, *value.args, *value.keywords.values())
        new = tuple(map(now, old))
        if all(a is b for a, b in zip(old, new, strict=True)):
            return value
        args, more = new[1 : 1 + len(value.args)], new[1 + len(value.args) :]
        made = kind(new[0], *args, **dict(zip(value.keywords, more, strict=True)))
        made.__dict__.update(value.__dict__)
        return made
    if issubclass(kind, (tuple, frozenset)):
        items = items_of(value) if issubclass(kind, tuple) else list(frozenset.__iter__(value))
        changed = list(map(now, items))
        if all(a is b for a, b in zip(items, changed, strict=True)):
            return value
        return tuple_of(value, changed) if issubclass(kind, tuple) else kind(changed)
    return value


def rekeyed(table: dict[Any, Any], now: Callable[[Any], Any]) -> None:
    """Give a dict what `now` returns for its keys. Its order stays."""
    keys = {id(key): now(key) for key in dict.keys(table) if type(key) not in _PLAIN}
    if all(keys.get(id(key), key) is key for key in dict.keys(table)):
        return
    pairs = [(keys.get(id(key), key), value) for key, value in dict.items(table)]
    base: Any = OrderedDict if isinstance(table, OrderedDict) else dict
    base.clear(table)
    for key, value in pairs:
        base.__setitem__(table, key, value)


def _change_table(table: dict[Any, Any], now: Callable[[Any], Any]) -> None:
    rekeyed(table, now)
    for key, part in list(dict.items(table)):
        if type(part) not in _PLAIN and now(part) is not part:
            dict.__setitem__(table, key, now(part))


def parts_held_by(value: Any) -> list[Any]:
    """The parts that an object holds itself."""
    kind = type(value)
    if is_weak(value):
        return strong_parts(value)
    if issubclass(kind, _LEAVES):
        return []
    if kind is types.MethodType:
        return [value.__self__]
    if kind is CACHED_FUNCTION:
        return [value.__wrapped__]
    found: list[Any] = []
    if issubclass(kind, functools.partial):
        found = [value.func, *value.args, *value.keywords.values()]
    elif issubclass(kind, dict):
        found = [*dict.keys(value), *dict.values(value)]
    elif issubclass(kind, _SEQUENCES):
        found = items_of(value)
    elif issubclass(kind, _SETS):
        found = list(set.__iter__(value) if issubclass(kind, set) else frozenset.__iter__(value))
    return [*found, *_attributes(value).values()] if _has_own_attributes(kind) else found


def _attributes(value: Any) -> Mapping[str, Any]:
    return given_attributes(value) if isinstance(value, torch.Tensor) else attributes_of(value)


@once_per_class
def _has_own_attributes(kind: type) -> bool:
    """True if objects of a class may have parts of a model in their attributes."""
    if issubclass(kind, nn.Module):
        return True
    if issubclass(kind, torch.Tensor):  # not of other wrappers, whose attributes are those of modes
        return kind in (torch.Tensor, FakeTensor) or issubclass(kind, nn.Parameter)
    return kind.__module__ != "builtins" and not issubclass(kind, _LEAVES) and not kind.__module__.startswith(_INTERNAL)
