"""Copies of modules around other tensors. A forward that sets attributes changes the copy only."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn


def copy_module(module: nn.Module, tensor: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of a module and its submodules, with other tensors. The original is not changed.

    tensor: a function that gives the tensor of the copy for each parameter, buffer, and tensor in an attribute.

    Dicts, lists and sets in attributes are copied, so that a forward that stores something there leaves the original
    as it is; other values are shared. A submodule that is used twice is one submodule in the copy too. Modules of the
    model, their bound methods, and tensors are replaced wherever attributes hold them, also inside dicts, lists and
    tuples.
    """
    made: dict[int, nn.Module] = {}
    members = {id(m) for m in module.modules()}

    def clone(original: nn.Module) -> nn.Module:
        if id(original) in made:
            return made[id(original)]
        new: nn.Module = object.__new__(type(original))  # also of a GraphModule, whose class holds its compiled forward
        made[id(original)] = new
        own = {k: v for k, v in original.__dict__.items() if k not in ("_parameters", "_buffers", "_modules")}
        for kind in ("_parameters", "_buffers"):
            tensors = original.__dict__[kind].items()
            new.__dict__[kind] = {k: None if t is None else tensor(t) for k, t in tensors}
        new.__dict__["_modules"] = {k: None if m is None else clone(m) for k, m in original._modules.items()}
        new.__dict__.update({k: attribute(v) for k, v in own.items()})
        return new

    def attribute(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return clone(value) if id(value) in members else value
        if isinstance(value, torch.Tensor):
            return tensor(value)
        if isinstance(value, types.MethodType) and id(value.__self__) in members:
            return types.MethodType(value.__func__, clone(cast(nn.Module, value.__self__)))
        if type(value) is weakref.ref:  # recurrent layers compare these with their parameters
            target: Any = value()
            return weakref.ref(tensor(target)) if isinstance(target, torch.Tensor) else value
        if type(value) in (list, tuple):
            return type(value)(map(attribute, value))
        if type(value) is dict:
            return {k: attribute(v) for k, v in value.items()}
        return value.copy() if type(value) is set else value

    return clone(module)
