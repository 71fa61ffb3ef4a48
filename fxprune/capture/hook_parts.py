"""The functions of the forward hooks of a model, and the objects that they belong to: what runs keep outside of it."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_TABLES = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (int, float, complex, bool, str, bytes, type(None), dict, list, tuple, set, frozenset)


def parts_of_hooks(model: nn.Module) -> Iterator[Any]:
    """The functions of the forward hooks of all modules, and the objects that they are methods of, without modules."""
    waiting = [
        hook for module in model.modules() for table in _TABLES for hook in module.__dict__.get(table, {}).values()
    ]
    while waiting:
        hook = waiting.pop()
        if isinstance(hook, functools.partial):
            waiting += [hook.func, *hook.args, *hook.keywords.values()]
        elif isinstance(hook, types.MethodType):
            waiting += [hook.__func__, hook.__self__]
        elif isinstance(hook, types.FunctionType):
            yield hook
        elif not isinstance(hook, (nn.Module, torch.Tensor, type, *_PLAIN)):
            call = vars(type(hook)).get("__call__")
            waiting += [call] if isinstance(call, types.FunctionType) else []
            yield hook


def attributes_of_hooks(model: nn.Module) -> list[dict[str, Any]]:
    """The attributes of the objects whose methods are hooks."""
    parts = (part for part in parts_of_hooks(model) if not isinstance(part, types.FunctionType))
    return [own for part in parts if type(own := getattr(part, "__dict__", None)) is dict]
