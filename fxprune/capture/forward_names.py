"""The names of attributes that a run of a model may read."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch import nn

from fxprune.capture.code import functions_of, is_torch, names_in
from fxprune.capture.references import HOOKS, MOST, PLAIN, attributes_and_items, closed_over, reachable

_BY_ANY_NAME = frozenset({"getattr", "vars", "__dict__", "attrgetter", "__getattribute__", "exec", "eval"})
"""Names by which code may read an attribute whose name is not in it."""

_CALLS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__")
"""The methods of a module that its call begins with."""

_OUTER = frozenset({object, nn.Module})


def names_forward_may_read(model: nn.Module) -> frozenset[str] | None:
    """The names in the code that a call of a model may run; None if the user's code may read attributes by any name.

    That is the code of forward of each module and of what it calls, of hooks, and of functions and objects in the
    attributes that are read. Torch's own code counts where it is a method of a module.

    >>> model = nn.Sequential(nn.Linear(3, 3))
    >>> model.kept = model[0].kept = lambda x: model(x)
    >>> "kept" in names_forward_may_read(model), "weight" in names_forward_may_read(model)
    (False, True)
    """
    code = _Code({type(module) for module in model.modules()})
    for kind in code.kinds:
        code.add_methods(kind, _CALLS)
    code.read()
    size = -1
    while size != len(code.names):  # an attribute that is read may hold code that reads more of them
        size = len(code.names)
        for module in model.modules():
            for name, value in attributes_and_items(module):
                if name in HOOKS or name in code.names or name not in module.__dict__:
                    code.add_held(value)
        for kind in code.kinds:
            code.add_methods(kind, code.names & _members(kind))
        code.read()
    return None if code.by_any_name else frozenset(code.names)


class _Code:
    """The code that was looked at, and its names. kinds: the classes of a model's modules."""

    def __init__(self, kinds: set[type]) -> None:
        self.kinds, self.names, self.by_any_name = kinds, set[str](), False
        self._seen: dict[int, Any] = {}  # by id, which is not used twice while the value is kept
        self._waiting: list[types.FunctionType] = []

    def add_methods(self, kind: type, names: Iterable[str]) -> None:
        """Add the methods of a class, by their names."""
        for name in names:
            self.add(inspect.getattr_static(kind, name, None))

    def add_held(self, value: Any) -> None:
        """Add the functions in a value, and the methods of objects in it."""
        if type(value) in PLAIN or not self._is_new(value):
            return
        for part in islice(reachable(value), MOST):
            self.add(part)
            if not isinstance(part, (nn.Module, type, types.ModuleType)):
                self._add_class(type(part))

    def add(self, value: Any) -> None:
        """Add a function, or a method, to those that are waiting."""
        self._waiting += [function for function in functions_of(value) if self._is_new(function)]

    def read(self) -> None:
        """Read the functions that are waiting, and those that they use."""
        while self._waiting:
            function = self._waiting.pop()
            own = set(names_in(function.__code__))
            self.names |= own
            if not is_torch(function.__module__):
                self.by_any_name |= bool(own & _BY_ANY_NAME)
                for other in closed_over(function).values():
                    self._add_used(other, own)

    def _is_new(self, value: Any) -> bool:
        known = id(value) in self._seen
        self._seen[id(value)] = value
        return not known

    def _add_used(self, value: Any, names: set[str]) -> None:
        """Add a variable of a function. names: those that the function uses, of functions in a Python module too."""
        if isinstance(value, types.ModuleType):
            if not is_torch(value.__name__):
                for name in names & vars(value).keys():
                    self._add_used(vars(value)[name], set())
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, types.FunctionType):
            self.add(value)
        else:
            self.add_held(value)

    def _add_class(self, kind: type) -> None:
        if kind.__module__ == "builtins" or is_torch(kind.__module__) or kind in self.kinds:
            return
        if self._is_new(kind):
            self.add_methods(kind, _members(kind))


@functools.lru_cache(maxsize=1024)
def _members(kind: type) -> frozenset[str]:
    """The names of a class's methods, without those of `object` and of `nn.Module`."""
    return frozenset(_names_of(kind))


def _names_of(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        if base not in _OUTER:
            yield from vars(base)
