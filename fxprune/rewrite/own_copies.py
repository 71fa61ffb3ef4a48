"""Modules whose class says itself how they are copied: a `__deepcopy__` may know the old widths only."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from fxprune.capture.code import is_torch
from fxprune.errors import text_of


def copies_that_differ(small: nn.Module, cut: Mapping[str, object]) -> list[str]:
    """Sentences about the modules of a small model of which `copy.deepcopy` makes something else, or raises.

    cut: the names of the parameters and buffers that are smaller than in the original.
    """
    found: dict[str, None] = {}
    for path, module in small.named_modules():
        own = getattr(type(module), "__deepcopy__", None)
        if own is None or is_torch(own.__module__) or not any(name.startswith(path and f"{path}.") for name in cut):
            continue
        why = _why_not(module)
        if why:
            where = f'"{path}"' if path else "the small model"
            found[
                f"copy.deepcopy of {where} {why}: {type(module).__name__}.__deepcopy__ does not follow the widths"
            ] = None
    return list(found)


def _why_not(module: nn.Module) -> str:
    """The fault of a deep copy of a module, "" if it has the same tensors."""
    try:
        made = copy.deepcopy(module)
    except Exception as error:  # of the user's method
        return f"raises ({text_of(error, lines=1)})"
    shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
    other = [name for name, tensor in module.state_dict().items() if shapes.get(name) != tensor.shape]
    return f'has another "{other[0]}"' if other else ""
