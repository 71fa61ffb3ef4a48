"""Facts about a model that need no run: the hooks of its modules, and modes that a class sets in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fxprune.capture.places import line_of

FORWARD_HOOKS = {"_forward_hooks": "a forward hook", "_forward_pre_hooks": "a forward pre-hook"}
BACKWARD_HOOKS = {"_backward_hooks": "a backward hook", "_backward_pre_hooks": "a backward pre-hook"}


def hooks_of(module: nn.Module, kinds: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Each hook of a module, of some kinds: what it is, and the line that defines it."""
    for attribute, name in kinds.items():
        for hook in vars(module).get(attribute, {}).values():
            yield name, line_of(hook)


def own_modes(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Each of `train` and `eval` that the class of a module has of its own: what it is, and its line."""
    for method in ("train", "eval"):
        function: Callable[..., Any] = getattr(type(module), method)
        if function is not getattr(nn.Module, method):
            yield f"a {method}() of its own", line_of(function)


def lost_in_program(model: nn.Module) -> Iterator[str]:
    """Sentences about what an exported program does not keep of a model at rest."""
    for path, module in model.named_modules():
        where = f'"{path}"' if path else "the model"
        for name, line in hooks_of(module, BACKWARD_HOOKS):
            yield f"{name} of {where} ({line})"
        for name, line in own_modes(module):
            yield f"{name}, which {where} has ({line})"
