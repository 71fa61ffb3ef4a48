"""Hooks of parameters: functions of a gradient, and functions that run after a gradient was accumulated."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fxprune.capture.code import content_of, names_used_by
from fxprune.capture.references import place_of, reachable
from fxprune.capture.tensors import Tensors
from fxprune.rewrite.gradient_masks import mask_of, swapped, with_mask

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

    One that is bound to a module of the original, or has one in its closure, is bound to the counterpart. Those that
    cannot work are left out: see `left_out`.

    original, tensors: name of a tensor -> the original one, the new one. model: the original.
    known: the names of its parts, as `names_in` gives them. cut: a function from the name of a parameter and a tensor
        that fits it to the kept part of that tensor, for masks of gradients.
    """
    modules = _counterparts(model, small)
    counterparts: dict[int, Any] = {**modules}
    counterparts |= {id(original[name]): tensor for name, tensor in tensors.items() if name in original}
    for name, table, hook in hooks_of(original):
        new = tensors.get(name)
        mask = None if new is None or new.shape == original[name].shape else mask_of(hook, original[name].shape)
        if mask is not None:
            hook = with_mask(hook, cut(name, mask), original[name].shape)
        if new is not None and not _why_not(hook, original[name].shape, new.shape, known, modules):
            needs_gradient = new.requires_grad
            HOOK_TABLES[table][1](new.requires_grad_(), _rebound(hook, counterparts))
            new.requires_grad_(needs_gradient)


def rebind(small: nn.Module, model: nn.Module) -> None:
    """Bind the hooks of the small model's parameters to the modules of the model that is going to have them."""
    counterparts = _counterparts(small, model)
    for tensor in small.parameters():
        for table in HOOK_TABLES:
            hooks = getattr(tensor, table, None) or {}
            for key, hook in hooks.items():
                hooks[key] = _rebound(hook, counterparts)


def left_out(
    original: Mapping[str, torch.Tensor], model: nn.Module, known: Mapping[int, str], state: Tensors, small: nn.Module
) -> list[tuple[str, str]]:
    """The hooks of parameters that the small model does not have: name of the parameter, a sentence.

    Arguments as those of `carried`.
    """
    settled = _settled(original, model, known, state, small)
    return [(name, f"{described(name, table, hook)} is left out: {why}") for name, table, hook, why in settled if why]


def carried(
    original: Mapping[str, torch.Tensor], model: nn.Module, known: Mapping[int, str], state: Tensors, small: nn.Module
) -> list[str]:
    """Sentences about the hooks of parameters that the small model has with another mask.

    original: name of a tensor of the original -> it. model: the original. known: the names of its parts, as `names_in`
    gives them. state: the tensors of the small model.
    """
    found = []
    for name, table, hook, why in _settled(original, model, known, state, small):
        old = original[name].shape
        if not why and old != state[name].shape and mask_of(hook, old) is not None:
            found.append(f"{described(name, table, hook)} has the kept part of its mask, as a tensor of its own")
    return found


def _settled(
    original: Mapping[str, torch.Tensor], model: nn.Module, known: Mapping[int, str], state: Tensors, small: nn.Module
) -> Iterator[tuple[str, str, Any, str]]:
    """Every hook of a parameter that the small model has, as `hooks_of` gives it, and why it is left out, or ""."""
    modules = _counterparts(model, small)
    for name, table, hook in hooks_of(original):
        if name in state:
            yield name, table, hook, _why_not(hook, original[name].shape, state[name].shape, known, modules)


def described(name: str, table: str, hook: Any) -> str:
    """Returns the name of a hook for sentences."""
    return f'a {HOOK_TABLES[table][0]} of "{name}" ({place_of(hook)})'


def _counterparts(model: nn.Module, other: nn.Module) -> dict[int, nn.Module]:
    """Id of a module of a model -> the module of the other model that has the same path."""
    modules = dict(other.named_modules())
    return {id(module): modules[path] for path, module in model.named_modules() if path in modules}


def hooks_of(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str, Any]]:
    """Every hook of a parameter: the name of the parameter, the table, the hook."""
    for name, tensor in tensors.items():
        for table in HOOK_TABLES if tensor.is_leaf else ():
            for hook in (getattr(tensor, table, None) or {}).values():
                yield name, table, hook


def _why_not(
    hook: Any, old: Sequence[int], new: Sequence[int], known: Mapping[int, str], modules: Mapping[int, nn.Module]
) -> str:
    """The reason why a hook cannot work on a parameter of another shape; "" if it can.

    modules: id of a module of the original -> its counterpart in the small model.
    """
    bound = {id(value): value for value in bound_to(hook)}
    for key, value in bound.items():
        if isinstance(value, nn.Module) and key in known:
            lost = _lost(value, modules.get(key), names_used_by(hook, type(value)))
            if lost is not None:
                return f"it refers to {known[key]}" + (f', and the small model has no "{lost}" there' if lost else "")
    mask = mask_of(hook, old)
    for part in reachable(hook):
        if part is mask and mask is not None:
            continue
        if id(part) in known and id(part) not in bound:
            return f"it refers to {known[id(part)]}"
        if isinstance(part, torch.Tensor) and id(part) not in known and old != new and not _fits(part.shape, new):
            return f"it uses a tensor of shape {tuple(part.shape)}, and the gradient has shape {tuple(new)} now"
    return ""


def _lost(module: nn.Module, counterpart: nn.Module | None, names: frozenset[str]) -> str | None:
    """The attribute of these names that a counterpart lacks; "" if there is no counterpart, None if it has all."""
    if counterpart is None:
        return ""
    return next(iter(sorted(names & _attributes(module) - _attributes(counterpart))), None)


def _attributes(module: nn.Module) -> set[str]:
    """The names of the attributes of a module and of its class."""
    return {*module.__dict__, *module._buffers, *module._parameters, *module._modules, *dir(type(module))}


def _fits(shape: Sequence[int], gradient: Sequence[int]) -> bool:
    """True if a tensor of this shape can be broadcast to a gradient, as in a product of the two."""
    pairs = zip(reversed(shape), reversed(gradient), strict=False)
    return len(shape) <= len(gradient) and all(size in (1, other) for size, other in pairs)


def bound_to(hook: Any) -> Iterator[Any]:
    """The objects that `_rebound` replaces if they are of the original."""
    if isinstance(hook, types.MethodType):
        yield hook.__self__
    if isinstance(hook, functools.partial):
        for part in (hook.func, *hook.args, *hook.keywords.values()):
            yield part
            yield from bound_to(part)
    if isinstance(hook, types.FunctionType):
        cells = [content_of(cell) for cell in hook.__closure__ or ()]
        for part in (*cells, *(hook.__defaults__ or ()), *(hook.__kwdefaults__ or {}).values()):
            if _may_be_bound(part):
                yield part
                yield from bound_to(part)


def _rebound(value: Any, counterparts: Mapping[int, Any]) -> Any:
    """A hook with the counterparts of the modules and tensors that it is bound to, or that a partial function has.

    A function gets those of the modules in its closure and its defaults; its other variables stay shared.
    """
    if not any(id(part) in counterparts for part in bound_to(value)):
        return counterparts.get(id(value), value)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _rebound(value.__self__, counterparts))
    if isinstance(value, functools.partial):
        args = [_rebound(part, counterparts) for part in value.args]
        keywords = {name: _rebound(part, counterparts) for name, part in value.keywords.items()}
        return functools.partial(_rebound(value.func, counterparts), *args, **keywords)
    return swapped(value, lambda part: _rebound(part, counterparts) if _may_be_bound(part) else part)


def _may_be_bound(value: Any) -> bool:
    return isinstance(value, (nn.Module, types.MethodType))
