"""The Python code of a class: its functions, and the names that they use."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

from torch import nn


def names_read_by(module: nn.Module) -> frozenset[str]:
    """The names that `forward` of a module and its hooks use, and those in the methods and functions that they call.

    Code of torch is left out. Forward reads no attribute that is not among them; another object may.

    >>> class Net(nn.Module):
    ...     def forward(self, x):
    ...         return self.half(x)
    ...     def half(self, x):
    ...         return x[:, : self.width]
    >>> sorted(names_read_by(Net()))
    ['half', 'width']
    """
    names: set[str] = set()
    seen: dict[types.CodeType, types.FunctionType] = {}
    kind, hooks = type(module), (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    own = (value for value in module.__dict__.values() if callable(value) and not isinstance(value, nn.Module))
    for value in (getattr(kind, "forward", None), *own, *hooks):
        _read(value, kind, names, seen)
    return frozenset(names)


def functions_run_by(module: nn.Module) -> list[types.FunctionType]:
    """The Python functions that `forward` of a module's class runs, itself first: methods and functions that it calls.

    Code of torch is left out.
    """
    seen: dict[types.CodeType, types.FunctionType] = {}
    _read(getattr(type(module), "forward", None), type(module), set(), seen)
    return list(seen.values())


def names_used_by(function: Any, kind: type) -> frozenset[str]:
    """The names that a function uses, and those in what it calls: functions, and methods of a class of modules.

    >>> sorted(names_used_by(lambda module: module.width * 2, nn.Module))
    ['width']
    """
    names: set[str] = set()
    while isinstance(function, functools.partial):
        function = function.func
    _read(function, kind, names, {})
    return frozenset(names)


def _read(value: Any, kind: type, names: set[str], seen: dict[types.CodeType, types.FunctionType]) -> None:
    """Add the names that a function, or what it calls, uses to `names`. seen: the code that was looked at before."""
    for function in functions_of(value):
        code = function.__code__
        if code in seen or is_torch(function.__module__):
            continue
        seen[code] = function
        own = set(names_in(code))
        names |= own
        members = [inspect.getattr_static(kind, name, None) for name in own if name.isidentifier()]
        closed = [content_of(cell) for cell in function.__closure__ or ()]
        for other in (*members, *(function.__globals__.get(name) for name in own), *closed):
            _read(other, kind, names, seen)


def is_torch(module: str | None) -> bool:
    """True for the name of a module of torch."""
    return (module or "").partition(".")[0] == "torch"


def functions_of(value: Any) -> Iterator[types.FunctionType]:
    """The Python functions behind a method, property, partial or decorated function."""
    if isinstance(value, property):
        parts = [value.fget]
    elif isinstance(value, functools.partial):
        parts = [value.func]
    else:
        parts = [getattr(value, "__func__", value), getattr(value, "__wrapped__", None)]
    for part in parts:
        if isinstance(part, types.FunctionType):
            yield part


def content_of(cell: Any) -> Any:
    """The value of a variable in a closure; None if it has none yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def names_in(code: types.CodeType) -> Iterator[str]:
    """The names that code and the functions inside it use, and the texts in it that could be names."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)
        elif isinstance(constant, str):
            yield constant
