"""The attributes of modules that hooks of parameters read: a mask beside a layer, in the module around it, say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.capture.code import names_used_by
from fxprune.capture.references import reachable
from fxprune.capture.tensors import Tensors
from fxprune.rewrite.tensor_hooks import bound_to, described, hooks_of


@dataclass(frozen=True, eq=False)
class HookReading:
    """A hook of a parameter that may read attributes of a module.

    parameter: its name. hook: what to call the hook. path: that of the module. names: those that the hook uses.
    """

    parameter: str
    hook: str
    path: str
    names: frozenset[str]


def readings(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> list[HookReading]:
    """The hooks of parameters with each module that they are bound to, or reach from there by names that they use."""
    paths = {id(module): path for path, module in model.named_modules()}
    found = []
    for name, table, hook in hooks_of(tensors):
        for module in {id(part): part for part in bound_to(hook) if id(part) in paths}.values():
            names = names_used_by(hook, type(module))
            inside = {id(part): part for part in _reached(module, names)}
            found += [
                HookReading(name, described(name, table, hook), paths[key], names) for key in inside if key in paths
            ]
    return found


def _reached(module: nn.Module, names: frozenset[str]) -> Iterator[nn.Module]:
    yield module
    for name, child in module.named_children():
        if name in names or name.isdigit():
            yield from _reached(child, names)


def of_attribute(found: Iterable[HookReading], path: str, attribute: str) -> list[HookReading]:
    """The readings of an attribute of a module; those of parameters inside the module, if there are some."""
    named = [each for each in found if each.path == path and attribute in each.names]
    return [each for each in named if each.parameter.startswith(f"{path}." if path else "")] or named


def too_wide(
    tensors: Mapping[str, torch.Tensor], model: nn.Module, small: nn.Module, state: Tensors, skip: Sequence[str]
) -> list[str]:
    """Sentences about attributes that hooks read and that kept their shape, although the gradient has another now.

    tensors: name of a tensor of the original -> it. model: the original. state: the tensors of the small model. skip:
        sentences of `left_out`, about hooks that the small model does not have.
    """
    originals, modules = dict(model.named_modules()), dict(small.named_modules())
    sentences: dict[str, None] = {}
    for each in readings(tensors, model):
        if each.parameter not in state or each.path not in modules or any(s.startswith(each.hook) for s in skip):
            continue
        old, new = tensors[each.parameter].shape, state[each.parameter].shape
        for name in sorted(each.names):
            before = {tuple(t.shape) for t in _tensors_in(originals[each.path], name)}
            for shape in (tuple(t.shape) for t in _tensors_in(modules[each.path], name)):
                if shape in before and _of_lost_size(shape, old, new):
                    where = f'"{name}" of "{each.path}"' if each.path else f'"{name}" of the model'
                    sentences[
                        f"{each.hook} reads {where}, which stays {list(shape)}, and the gradient has shape "
                        f"{list(new)} now"
                    ] = None
    return list(sentences)


def _tensors_in(module: nn.Module, name: str) -> Iterator[Any]:
    """The tensors and arrays in an attribute of a module that are no parameters."""
    value = module.__dict__.get(name, module._buffers.get(name))
    for part in () if value is None else reachable(value):
        if isinstance(part, (torch.Tensor, np.ndarray)) and not isinstance(part, nn.Parameter):
            yield part


def _of_lost_size(shape: Sequence[int], old: Sequence[int], new: Sequence[int]) -> bool:
    """True if a tensor of this shape has a size that a gradient had in a dimension which is smaller now."""
    if len(shape) == len(old):
        return any(a == b != c for a, b, c in zip(shape, old, new, strict=True))
    return any(b != c and b in shape for b, c in zip(old, new, strict=True))
