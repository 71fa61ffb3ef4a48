"""Dropped branches, carried out on a model without an analysis: other modules take the place of some."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from fxprune.capture.given_attributes import given_attributes
from fxprune.capture.module_copy import copy_module
from fxprune.capture.references import reachable
from fxprune.depth.dropped import CHAIN, IDENTITY, PASSES, ZEROS, Dropped, Replacement
from fxprune.depth.stubs import GivesZeros, PassesOn
from fxprune.errors import PlanError


def without_dropped(model: nn.Module, dropped: Sequence[Dropped]) -> nn.Module:
    """A copy of a model around the same tensors, without these branches. The model is not changed.

    Raises `PlanError` if the model has no such modules, or tensors of other shapes in them.
    """
    for one in dropped:
        _check(model, one)
    own: dict[int, torch.Tensor] = {}
    made = copy_module(model, lambda tensor: own.setdefault(id(tensor), _with_own_attributes(tensor)))
    for one in dropped:
        replace_modules(made, one.replaced)
    return made


def _with_own_attributes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself; for a parameter whose attributes have modules in them another one around the same numbers.

    Its attributes are those of the model without branches then: `copy_module` gives it them.
    """
    held = (part for value in given_attributes(tensor).values() for part in reachable(value))
    if type(tensor) is not nn.Parameter or tensor._backward_hooks or not any(isinstance(p, nn.Module) for p in held):
        return tensor
    made = nn.Parameter(tensor.data, tensor.requires_grad)
    made.grad = tensor.grad
    return made


def _check(model: nn.Module, dropped: Dropped) -> None:
    have = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
    for name, shape in dropped.tensors.items():
        if name not in have or tuple(have[name].shape) != shape:
            now = f"it has shape {tuple(have[name].shape)}" if name in have else "there is no such tensor"
            raise PlanError(
                f'the plan is for another model: where it was made, "{name}" of the branch "{dropped.name}" has shape '
                f"{shape}",
                why=f"in this model {now}",
                do="apply it to the original, not to the small model",
            )


def replace_modules(model: nn.Module, replacements: Iterable[Replacement]) -> None:
    """Replace modules of a model, in place. Raises `PlanError` where there is none."""
    for replacement in replacements:
        modules = dict(model.named_modules(remove_duplicate=False))
        old = modules.get(replacement.path)
        children = {} if old is None else dict(old.named_children())
        if old is None or not replacement.path or not {*replacement.children} <= {*children}:
            missing = [name for name in replacement.children if name not in children]
            raise PlanError(
                "the plan drops a branch that the model has not",
                at=f'"{replacement.path}"',
                why="there is no such module" if old is None else f"it has no {', '.join(missing)}",
                do="apply it to the model that it was made for",
            )
        new = _new(replacement, old, children)
        new.training = old.training
        numbers = _cache_numbers(old.modules())
        for path, module in modules.items():
            if module is old:
                outer, _, name = path.rpartition(".")
                modules[outer]._modules[name] = new
                _leave_fast_path(modules[outer])
        _count_from_first(model, numbers)


def _new(replacement: Replacement, old: nn.Module, children: Mapping[str, nn.Module]) -> nn.Module:
    if replacement.kind == IDENTITY:
        return nn.Identity()
    if replacement.kind == ZEROS:
        return nn.Threshold(math.inf, 0.0)
    if replacement.kind == CHAIN:
        made = nn.Sequential()
        for name in replacement.children:
            made.add_module(name, _not_in_place(children[name]))
        return made
    passes = replacement.kind == PASSES
    stub = PassesOn(replacement.source, replacement.form) if passes else GivesZeros(replacement.form)
    stub.keep_attributes(old)
    return stub


def _not_in_place(module: nn.Module) -> nn.Module:
    """The module, not in place any more: it would write into the input of the block."""
    for child in module.modules():
        if getattr(child, "inplace", False) is True:
            child.inplace = False  # type: ignore[assignment]
    return module


def _cache_numbers(modules: Iterable[nn.Module]) -> dict[int, list[nn.Module]]:
    """The numbers by which attention of transformers finds its part of a cache -> the modules that have them."""
    found: dict[int, list[nn.Module]] = {}
    for module in modules:
        number = getattr(module, "layer_idx", None)
        if type(number) is int and not isinstance(module, (PassesOn, GivesZeros)):
            found.setdefault(number, []).append(module)
    return found


def _count_from_first(model: nn.Module, gone: Mapping[int, Sequence[nn.Module]]) -> None:
    """Let a layer that stays have the number of one that has gone, if that was the first of its kind.

    A cache of transformers counts the tokens that it holds in the first of its parts that is one of attention, or of a
    kind of attention. Parts of other kinds, such as the states of linear attention, cannot take their place.
    """
    left = _cache_numbers(model.modules())
    for number, modules in gone.items():
        kinds = set(map(_cache_kind, modules))
        alike = [other for other, found in left.items() if kinds & set(map(_cache_kind, found))]
        if number not in left and alike and number < min(alike):
            for module in left.pop(min(alike)):
                module.layer_idx = number  # type: ignore[assignment]


def _cache_kind(module: nn.Module) -> tuple[object, ...]:
    """The kind of the part of a cache that a layer fills: one class may attend to all tokens, or to a window."""
    return type(module), *(getattr(module, name, None) for name in ("layer_type", "sliding_window"))


def _leave_fast_path(module: nn.Module) -> None:
    """Keep an encoder layer of torch off its fused path, which reads the weights of all parts of it."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """All names of parameters and buffers -> the tensor."""
    return dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
