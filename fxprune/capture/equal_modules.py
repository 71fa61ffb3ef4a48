"""Modules that their class compares by value. Torch lists the modules of a model in a set, and so only one of them."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune.errors import CaptureError, text_of


def check_told_apart(model: Any) -> None:
    """Raises `CaptureError` for a module that is equal to another one of its model, or that has no hash."""
    if not isinstance(model, nn.Module):
        return
    found: dict[int, tuple[str, nn.Module]] = {}
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = path, module
            children = ((f"{path}.{name}".lstrip("."), child) for name, child in reversed(module._modules.items()))
            waiting += [(inner, child) for inner, child in children if child is not None]
    first: dict[nn.Module, str] = {}
    for path, module in found.values():
        kind = type(module)
        if kind.__eq__ is object.__eq__ and kind.__hash__ is object.__hash__:
            continue
        try:
            other = first.setdefault(module, path)
        except Exception as error:  # whatever the user's own methods raise
            raise _error(f"{_named(path)} has no hash", kind, text_of(error)) from error
        if other != path:
            raise _error(f"{_named(other)} and {_named(path)} are equal", kind, "it compares them by value")


def _named(path: str) -> str:
    return f'"{path}"' if path else "the model"


def _error(what: str, kind: type, why: str) -> CaptureError:
    return CaptureError(
        "modules cannot be told apart",
        at=f"{what}, of class {kind.__name__}",
        why=f"{why}; torch lists the modules of a model in a set, and leaves out the second of two that are equal",
        do="write `__eq__ = object.__eq__` and `__hash__ = object.__hash__` into the class",
    )
