"""The attributes of a model that its runs may write all the same: they are put back.

Runs use copies of a model. But a closure over a module counts its calls in the module itself.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from fxprune.capture.same_values import SameValues

_TABLES = ("_parameters", "_buffers", "_modules")
_OF_TORCH = frozenset(nn.Module().__dict__)
_CONTAINERS = (list, dict, OrderedDict, set, deque)
_NESTED = (list, tuple, dict, functools.partial)
_NO_CLOSURES = (type, nn.Module, types.BuiltinFunctionType)
_MOST_ITEMS = 10_000
"""A container with more items than this is data."""


def may_have_closures(model: nn.Module) -> bool:
    """True if a closure may be part of a model: a hook, a function in an attribute, a class that a function has made.

    It is asked of every model, and most have none.
    """
    return any("<locals>" in type(module).__qualname__ or _holds_code(module) for module in model.modules())


def _holds_code(module: nn.Module) -> bool:
    held = module.__dict__.items()
    hooked = any(value for name, value in held if name.endswith("_hooks") and name in _OF_TORCH)
    return hooked or any(_is_code(value) for name, value in held if name not in _OF_TORCH)


def _is_code(value: Any) -> bool:
    """True for something to call, and for a container of it, that may close over a module."""
    left, seen = [value], set()
    while left:
        value = left.pop()
        kind = type(value)
        if kind is types.FunctionType:
            if value.__closure__ is not None:
                return True
        elif kind in _NESTED:
            if id(value) not in seen:  # a container may hold itself
                seen.add(id(value))
                left.extend(_parts(value))
        elif callable(value) and not issubclass(kind, _NO_CLOSURES):
            return True
    return False


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, functools.partial):
        return value.func, *value.args, *value.keywords.values()
    return value.values() if isinstance(value, dict) else value


class KeptAttributes:
    """The values of the attributes of a model, and what is in their containers.

    ours: True if what has changed was written by a run of fxprune, and not by a forward of another thread. It is asked
        once, when something has changed.
    """

    def __init__(self, model: nn.Module, ours: Callable[[], bool]) -> None:
        self._ours = functools.cache(ours)
        own = [module.__dict__ for module in model.modules()]
        inner = (attributes.get(name) for attributes in own for name in _TABLES)
        self._tables = [table for table in itertools.chain(own, inner) if isinstance(table, dict)]
        held = (value for table in own for name, value in table.items() if name not in _OF_TORCH)
        found = {id(value): value for value in held if type(value) in _CONTAINERS and len(value) <= _MOST_ITEMS}
        self._containers = list(found.values())
        self._before = [(owner, dict(owner)) for owner in self._tables]
        self._items = [(owner, owner.copy()) for owner in self._containers]
        sequences = [owner for owner in self._containers if not isinstance(owner, dict)]
        self._same = SameValues(
            [*self._tables, *(owner for owner in self._containers if isinstance(owner, dict))], sequences
        )

    def restore(self, *, mode: bool) -> None:
        """Put back what has changed.

        mode: True to put back the mode of modules too. While fxprune runs, it may set that itself.
        """
        if self._same.unchanged() or not self._ours():
            return
        for table, before in self._before:
            for name in table.keys() - before.keys():
                dict.__delitem__(table, name)
            for name, value in before.items():
                if table.get(name, table) is not value and (mode or name != "training"):
                    dict.__setitem__(table, name, value)
        for container, items in self._items:
            if not _holds(container, items):
                container.clear()
                container.extend(items) if isinstance(container, (list, deque)) else container.update(items)


def _holds(container: Any, items: Any) -> bool:
    """True if a container has the same objects in it as its copy, in the same order."""
    if isinstance(container, set):
        return bool(container == items)
    if isinstance(container, dict):
        return _holds(list(itertools.chain(*container.items())), list(itertools.chain(*items.items())))
    return len(container) == len(items) and all(one is other for one, other in zip(container, items, strict=True))
