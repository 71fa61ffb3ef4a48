"""Structural twins of modules: what forward does to itself happens to the twin, not to the user's model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def twin(module: nn.Module, tensor: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """The same modules around other tensors: `tensor` maps every parameter and buffer.

    Settings are shared, dicts, lists and sets of them copied, so that a forward that caches something in an
    attribute leaves the original alone. Submodules that are shared stay shared.
    """
    made: dict[int, nn.Module] = {}

    def clone(original: nn.Module) -> nn.Module:
        if id(original) in made:
            return made[id(original)]
        new: nn.Module = object.__new__(type(original))  # a GraphModule's own class holds its compiled forward
        made[id(original)] = new
        new.__dict__.update({k: v.copy() if type(v) in (dict, list, set) else v for k, v in original.__dict__.items()})
        for kind in ("_parameters", "_buffers"):
            tensors = original.__dict__[kind].items()
            new.__dict__[kind] = {k: None if t is None else tensor(t) for k, t in tensors}
        new.__dict__["_modules"] = {k: None if m is None else clone(m) for k, m in original._modules.items()}
        return new

    return clone(module)
