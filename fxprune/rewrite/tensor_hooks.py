"""Hooks of parameters: functions of a gradient, and functions that run after a gradient was accumulated."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxprune.capture.tensors import Tensors
from fxprune.rewrite.gradient_masks import mask_of, with_mask
from fxprune.rewrite.references import place_of, reachable

HOOK_TABLES: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "_backward_hooks": ("gradient hook", torch.Tensor.register_hook),
    "_post_accumulate_grad_hooks": ("hook on the sum of gradients", torch.Tensor.register_post_accumulate_grad_hook),
}
"""Attribute of a tensor -> the name of the hooks in it, and the method that registers one."""


def carry_over(
    original: Mapping[str, torch.Tensor],
    model: nn.Module,
    known: Mapping[int, str],
    tensors: Mapping[str, torch.Tensor],
    small: nn.Module,
    cut: Callable[[str, torch.Tensor], torch.Tensor],
) -> None:
    """Register the hooks of the original's parameters on those of the small model. Changes `tensors`.

    One that is bound to a module of the original is bound to the counterpart. Those that cannot work are left out:
    see `left_out`.

    original, tensors: name of a tensor -> the original one, the new one. model: the original.
    known: the names of its parts, as `names_in` gives them. cut: a function from the name of a parameter and a tensor
        that fits it to the kept part of that tensor, for masks of gradients.
    """
    modules = dict(small.named_modules())
    counterparts: dict[int, Any] = {id(m): modules[path] for path, m in model.named_modules() if path in modules}
    counterparts |= {id(original[name]): tensor for name, tensor in tensors.items() if name in original}
    for name, table, hook in _hooks(original):
        new = tensors.get(name)
        mask = None if new is None or new.shape == original[name].shape else mask_of(hook, original[name].shape)
        if mask is not None:
            hook = with_mask(hook, cut(name, mask), original[name].shape)
        if new is not None and not _why_not(hook, original[name].shape, new.shape, known):
            needs_gradient = new.requires_grad
            HOOK_TABLES[table][1](new.requires_grad_(), _rebound(hook, counterparts))
            new.requires_grad_(needs_gradient)


def left_out(original: Mapping[str, torch.Tensor], known: Mapping[int, str], state: Tensors) -> list[str]:
    """Sentences about the hooks of parameters that the small model does not have, or has with another mask.

    known: the names of the original's parts, as `names_in` gives them. state: the tensors of the small model.
    """
    found = []
    for name, table, hook in _hooks(original):
        if name not in state:
            continue
        old, new = original[name].shape, state[name].shape
        what, why = f'a {HOOK_TABLES[table][0]} of "{name}" ({place_of(hook)})', _why_not(hook, old, new, known)
        if why:
            found.append(f"{what} is left out: {why}")
        elif old != new and mask_of(hook, old) is not None:
            found.append(f"{what} has the kept part of its mask, as a tensor of its own")
    return found


def _hooks(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str, Any]]:
    """Every hook of a parameter: the name of the parameter, the table, the hook."""
    for name, tensor in tensors.items():
        for table in HOOK_TABLES if tensor.is_leaf else ():
            for hook in (getattr(tensor, table, None) or {}).values():
                yield name, table, hook


def _why_not(hook: Any, old: Sequence[int], new: Sequence[int], known: Mapping[int, str]) -> str:
    """The reason why a hook cannot work on a parameter of another shape; "" if it can."""
    bound = {id(value) for value in _bound_to(hook)}
    mask = mask_of(hook, old)
    for part in reachable(hook):
        if id(part) in known and id(part) not in bound:
            return f"it refers to {known[id(part)]}"
        if part is mask and mask is not None:
            continue
        if isinstance(part, torch.Tensor) and id(part) not in known and old != new and not _fits(part.shape, new):
            return f"it uses a tensor of shape {tuple(part.shape)}, and the gradient has shape {tuple(new)} now"
    return ""


def _fits(shape: Sequence[int], gradient: Sequence[int]) -> bool:
    """True if a tensor of this shape can be broadcast to a gradient, as in a product of the two."""
    pairs = zip(reversed(shape), reversed(gradient), strict=False)
    return len(shape) <= len(gradient) and all(size in (1, other) for size, other in pairs)


def _bound_to(hook: Any) -> Iterator[Any]:
    """The objects that `_rebound` replaces if they are of the original."""
    if isinstance(hook, types.MethodType):
        yield hook.__self__
    if isinstance(hook, functools.partial):
        for part in (hook.func, *hook.args, *hook.keywords.values()):
            yield part
            yield from _bound_to(part)


def _rebound(value: Any, counterparts: Mapping[int, Any]) -> Any:
    """A hook with the counterparts of the modules and tensors that it is bound to, or that a partial function has."""
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _rebound(value.__self__, counterparts))
    if isinstance(value, functools.partial):
        args = [_rebound(part, counterparts) for part in value.args]
        keywords = {name: _rebound(part, counterparts) for name, part in value.keywords.items()}
        return functools.partial(_rebound(value.func, counterparts), *args, **keywords)
    return counterparts.get(id(value), value)
