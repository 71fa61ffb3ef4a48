"""Masks in plain attributes, such as `layer.activation_mask`, which forward does not read: they lose the same slots.

A hook of a parameter may read such a tensor: then it is cut as that parameter, which may be one of a layer inside. Else
nothing but its shape says what it belongs to. It is taken for a mask of the parameter of its module that had the same
shape, or of one inside whose hook is bound to the module. What is done, or cannot be done, is said in the record.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.analysis.settings import OF_EVERY_MODULE
from fxprune.capture.layouts import is_packed
from fxprune.channels.groups import Bools, Removal
from fxprune.rewrite.hook_readings import HookReading, of_attribute, readings
from fxprune.rewrite.tensors import cut
from fxprune.rewrite.unread_attributes import ForwardNames

MOST_TOLD = 8
"""The most sentences about the tensors of one dict."""

KeptSlots = dict[int, Bools]
Shrunk = Mapping[str, tuple[str, tuple[int, ...], KeptSlots]]
"""Name of a tensor below a module -> its full name, its shape before, and the slots that stay."""
SlotsOf = tuple[str, KeptSlots] | str
"""The parameter that a tensor has the slots of and what stays of it, or a sentence why that is not known."""


def cut_attributes(small: nn.Module, findings: Findings, removal: Removal) -> tuple[str, ...]:
    """Gives tensors and arrays in attributes of layers the part that their parameter has now. Changes `small`.

    Returns a sentence about each of them, also about those that stay although a parameter of their module has shrunk
    in a dimension of their size. Values of dicts are found by their keys, which name tensors of the module or, all of
    them, of one inside, as the shadow of a moving average does. Layers of this package look after their own.
    """
    kept = kept_slots(findings, removal)
    originals, names = dict(findings.model.named_modules()), ForwardNames(findings.model)
    hooked = readings(findings.tensors, findings.model)
    sentences = []
    for path, module in small.named_modules():
        original = originals.get(path)
        if original is None or type(original).__module__.startswith("fxprune."):
            continue
        for name, value in list(module.__dict__.items()):
            tensors = [] if name in OF_EVERY_MODULE else list(_held(value))
            if not tensors or names.has(path, name):
                continue
            by_key = tensors[0][0] is not None
            shrunk = shrunk_below(findings, kept, path, original, buffers=by_key)
            named = _named_inside(shrunk, original, tensors) if by_key else {}
            attribute = f'attribute "{name}" of "{path}"' if path else f'attribute "{name}" of the model'
            told: list[str] = []
            for key, held in tensors:
                found = _of_hooks(findings, kept, hooked, path, name, held) if key is None else None
                found = found or (
                    fitting(shrunk, held) if key is None else _of_key(shrunk, key, held) or named.get(key)
                )
                where = attribute + ("" if key is None else f" for {key!r}")
                if isinstance(found, str):
                    told.append(f"{where} stays {list(held.shape)}, although {found}")
                elif found is not None:
                    parameter, flags = found
                    made = _cut(held, flags)
                    module.__dict__[name] = made if key is None else _with_item(module.__dict__[name], key, made)
                    if _is_computed(module, name, parameter):
                        continue
                    why = "it is taken for a mask of" if key is None else "its key names"
                    told.append(
                        f"{where} was {list(held.shape)} and is {list(made.shape)} now: forward does not read it, "
                        f'{why} "{parameter}"'
                    )
            more = [f"{attribute}: the same of {len(told) - MOST_TOLD} more tensors there"] * (len(told) > MOST_TOLD)
            sentences += told[:MOST_TOLD] + more
    return tuple(sentences)


def _is_computed(module: nn.Module, name: str, parameter: str) -> bool:
    """True for a tensor that torch computes again before each forward: by `prune`, `weight_norm` or `spectral_norm`.

    parameter: the one that the tensor has the slots of.
    """
    if parameter.endswith(f"{name}_orig") and f"{name}_mask" in module._buffers:
        return True
    hooks = module._forward_pre_hooks.values()
    return any(isinstance(hook, WeightNorm | SpectralNorm) and hook.name == name for hook in hooks)


def _with_item(table: dict[Any, Any], key: str, made: Any) -> dict[Any, Any]:
    """A copy of a dict with another value under one of its keys."""
    copied = copy.copy(table)
    copied[key] = made
    return copied


def _named_inside(shrunk: Shrunk, original: nn.Module, tensors: Sequence[tuple[str | None, Any]]) -> dict[str, SlotsOf]:
    """Key of a dict -> the parameter that it names and what stays of it, for keys that are names in a module inside.

    All keys have to be names of tensors of their shape there. Where several modules fit, whose tensors have lost other
    slots, the value is a sentence.
    """
    made: dict[str, SlotsOf] = {}
    for inside, _ in original.named_modules():
        names = {key: shrunk.get(f"{inside}.{key}") for key, _ in tensors if key is not None} if inside else {}
        fits = names and all(
            (named := names[key or ""]) is not None and named[1] == tuple(held.shape) for key, held in tensors
        )
        for key, named in names.items() if fits else ():
            before = made.get(key)
            if named is None or isinstance(before, str):
                continue
            if before is None:
                made[key] = named[0], named[2]
            elif not _equal(before[1], named[2]):
                made[key] = f'tensors of its name have lost other slots than each other: "{before[0]}", "{named[0]}"'
    return {key: found for key, found in made.items() if isinstance(found, str) or found[1]}


def _of_hooks(
    findings: Findings, kept: Mapping[str, KeptSlots], hooked: Sequence[HookReading], path: str, name: str, held: Any
) -> tuple[str, KeptSlots] | str | None:
    """Returns what `fitting` returns, for a tensor that hooks of parameters read, or that a module has for them.

    A tensor that a hook names may have size 1 where it is broadcast.
    """
    same = [each for each in hooked if each.path == path and _is_like(held, findings.tensors[each.parameter])]
    exact = [each for each in same if findings.tensors[each.parameter].shape == held.shape]
    about = of_attribute(same, path, name) or ([] if _own_of_shape(findings, path, held) else exact)
    flags = {e.parameter: {d: f for d, f in kept.get(e.parameter, {}).items() if held.shape[d] > 1} for e in about}
    first = next(iter(flags), "")
    if all(_equal(each, flags[first]) for each in flags.values()):
        return (first, flags[first]) if flags and flags[first] else None
    return f"parameters whose hooks read it have lost other slots than each other: {', '.join(flags)}"


def _is_like(held: Any, parameter: torch.Tensor) -> bool:
    """True if a tensor is of the shape of a parameter, or of size 1 in some of its dimensions."""
    return held.ndim == parameter.ndim and all(a in (1, b) for a, b in zip(held.shape, parameter.shape, strict=True))


def _own_of_shape(findings: Findings, path: str, held: Any) -> bool:
    own = findings.model.get_submodule(path).named_parameters(recurse=False)
    return any(tuple(parameter.shape) == tuple(held.shape) for _, parameter in own)


def _held(value: Any) -> Iterator[tuple[str | None, Any]]:
    """Yields (None, a tensor or array), or (key, each of them in a dict)."""
    for key, one in dict.items(value) if type(value) in (dict, OrderedDict) else [(None, value)]:
        plain = isinstance(one, torch.Tensor) and not isinstance(one, nn.Parameter) and not is_packed(one)
        if (isinstance(one, np.ndarray) or plain) and one.ndim and (key is None or isinstance(key, str)):
            yield key, one


def shrunk_below(
    findings: Findings, kept: Mapping[str, KeptSlots], path: str, original: nn.Module, *, buffers: bool = False
) -> Shrunk:
    """Returns the parameters below a module: {name there: (full name, shape before, slots that stay)}.

    buffers: True to list the buffers too.
    """
    made = {}
    tensors = [*original.named_parameters(), *(original.named_buffers() if buffers else ())]
    for name, tensor in tensors:
        full = f"{path}.{name}" if path else name
        first = findings.first_name(full)
        if first in findings.tensors:
            made[name] = (full, tuple(tensor.shape), kept.get(first, {}))
    return made


def _of_key(parameters: Shrunk, key: str, held: Any) -> SlotsOf | None:
    """Returns the parameter that a key names and what stays of it; None if it names none."""
    named = parameters.get(key) or parameters.get(f"{key}.weight")
    fits = named is not None and named[1] == tuple(held.shape) and named[2]
    return (named[0], named[2]) if named is not None and fits else None


def fitting(parameters: Shrunk, held: Any) -> SlotsOf | None:
    """Returns the parameter that a tensor is a mask of and what stays of it; a sentence if it is not known; or None."""
    own = [found for name, found in parameters.items() if "." not in name]
    same = [found for found in own if found[1] == tuple(held.shape)]
    if same:
        if all(_equal(found[2], same[0][2]) for found in same):
            return (same[0][0], same[0][2]) if same[0][2] else None
        return f"parameters of its shape have lost slots: {', '.join(found[0] for found in same)}"
    sizes = {held.shape[0], held.shape[-1]}
    lost = [full for full, shape, flags in own if any(shape[dim] in sizes for dim in flags)]
    return f'"{lost[0]}" has lost slots in a dimension of that size' if lost else None


def _equal(one: KeptSlots, other: KeptSlots) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[dim], other[dim]) for dim in one)


def _cut(held: Any, flags: KeptSlots) -> Any:
    if isinstance(held, torch.Tensor):
        return cut(held.detach(), flags)
    for dim, keep in flags.items():
        held = held.compress(keep, axis=dim)
    return held
