"""Widths that forward reads from places which cannot change for one model: its class, and members of enumerations."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from fxprune.capture.code import is_torch, names_read_by


def hidden_width(module: nn.Module, sizes: Collection[int]) -> str:
    """A sentence about a number of one of these sizes that forward of a module may read there, "" if there is none."""
    return next(_hidden(module, sizes), "")


def _hidden(module: nn.Module, sizes: Collection[int]) -> Iterator[str]:
    kind = type(module)
    if is_torch(kind.__module__):
        return
    names = sorted(names_read_by(module))
    scope = getattr(inspect.unwrap(kind.forward), "__globals__", {})
    for name in names:
        own = module.__dict__.get(name, inspect.getattr_static(kind, name, None))
        if isinstance(own, enum.Enum) and _is_one_of(own.value, sizes):
            of = type(own).__name__
            yield f'"{name}" is {own.value}, a member of {of}: hold its number, self.{name} = {own.value}'
        elif name not in module.__dict__ and type(own) is int and _is_one_of(own, sizes):
            yield f'"{name}" = {own} may be read from the class {kind.__name__}: read it from the module, self.{name}'
        members: Any = scope.get(name) if isinstance(scope.get(name), enum.EnumMeta) else ()
        for member in members:
            if member.name in names and _is_one_of(member.value, sizes):
                yield f"{name}.{member.name} is {member.value}: hold it in an attribute of the module, and read that"


def _is_one_of(value: Any, sizes: Collection[int]) -> bool:
    return isinstance(value, int) and value in sizes
