"""Masks in plain attributes, such as `layer.activation_mask`, which forward does not read: they lose the same slots.

A hook of a parameter may read such a tensor: then it is cut as that parameter, which may be one of a layer inside. Else
nothing but its shape says what it belongs to. It is taken for a mask of the parameter of its module that had the same
shape, or of one inside whose hook is bound to the module. What is done, or cannot be done, is said in the record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.analysis.settings import OF_EVERY_MODULE
from fxprune.capture.layouts import is_packed
from fxprune.channels.groups import Bools, Removal
from fxprune.rewrite.hook_readings import HookReading, of_attribute, readings
from fxprune.rewrite.tensors import cut
from fxprune.rewrite.unread_attributes import ForwardNames

KeptSlots = dict[int, Bools]


def cut_attributes(small: nn.Module, findings: Findings, removal: Removal) -> tuple[str, ...]:
    """Gives tensors and arrays in attributes of layers the part that their parameter has now. Changes `small`.

    Returns a sentence about each of them, also about those that stay although a parameter of their module has shrunk
    in a dimension of their size. Values of dicts are found by their keys, which name parameters. Layers of this package
    look after their own.
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
            shrunk = _shrunk(findings, kept, path, original)
            for key, held in tensors:
                found = _of_hooks(findings, kept, hooked, path, name, held) if key is None else None
                found = found or _fitting(shrunk, key, held)
                where = f'attribute "{name}" of "{path}"' if path else f'attribute "{name}" of the model'
                where += "" if key is None else f" for {key!r}"
                if isinstance(found, str):
                    sentences.append(f"{where} stays {list(held.shape)}, although {found}")
                elif found is not None:
                    parameter, flags = found
                    made = _cut(held, flags)
                    module.__dict__[name] = made if key is None else {**module.__dict__[name], key: made}
                    if parameter.endswith(f"{name}_orig") and f"{name}_mask" in module._buffers:
                        continue  # torch.nn.utils.prune computes it again before each forward
                    sentences.append(
                        f"{where} was {list(held.shape)} and is {list(made.shape)} now: forward does not read it, "
                        f'it is taken for a mask of "{parameter}"'
                    )
        sentences += _buffers_that_stay(findings, kept, path, original, module, names)
    return tuple(sentences)


def _of_hooks(
    findings: Findings, kept: Mapping[str, KeptSlots], hooked: Sequence[HookReading], path: str, name: str, held: Any
) -> tuple[str, KeptSlots] | str | None:
    """Returns what `_fitting` returns, for a tensor that hooks of parameters read, or that a module has for them.

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


def _buffers_that_stay(
    findings: Findings,
    kept: Mapping[str, KeptSlots],
    path: str,
    original: nn.Module,
    module: nn.Module,
    names: ForwardNames,
) -> Iterator[str]:
    """Yields a sentence about each buffer that forward does not read and whose parameter has shrunk.

    Such buffers keep their shape, which plans and files know.
    """
    for name, buffer in original._buffers.items():
        held = module._buffers.get(name)
        if buffer is None or held is None or not held.ndim or held.shape != buffer.shape:
            continue
        found = _fitting(_shrunk(findings, kept, path, original), None, held)
        if found is not None and not names.has(path, name):
            why = found if isinstance(found, str) else f'"{found[0]}" of this shape has lost slots'
            where = f'"{path}"' if path else "the model"
            yield f'buffer "{name}" of {where} stays {list(held.shape)}, although {why}: forward does not read it'


def _held(value: Any) -> Iterator[tuple[str | None, Any]]:
    """Yields (None, a tensor or array), or (key, each of them in a dict)."""
    for key, one in value.items() if type(value) is dict else [(None, value)]:
        plain = isinstance(one, torch.Tensor) and not isinstance(one, nn.Parameter) and not is_packed(one)
        if (isinstance(one, np.ndarray) or plain) and one.ndim and (key is None or isinstance(key, str)):
            yield key, one


def _shrunk(
    findings: Findings, kept: Mapping[str, KeptSlots], path: str, original: nn.Module
) -> dict[str, tuple[str, tuple[int, ...], KeptSlots]]:
    """Returns the parameters below a module: {name there: (full name, shape before, slots that stay)}."""
    made = {}
    for name, parameter in original.named_parameters():
        full = f"{path}.{name}" if path else name
        first = findings.first_name(full)
        if first in findings.tensors:
            made[name] = (full, tuple(parameter.shape), kept.get(first, {}))
    return made


def _fitting(
    parameters: Mapping[str, tuple[str, tuple[int, ...], KeptSlots]], key: str | None, held: Any
) -> tuple[str, KeptSlots] | str | None:
    """Returns the parameter that a tensor is a mask of and what stays of it; a sentence if it is not known; or None."""
    if key is not None:
        named = parameters.get(key) or parameters.get(f"{key}.weight")
        fits = named is not None and named[1] == tuple(held.shape) and named[2]
        return (named[0], named[2]) if named is not None and fits else None
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
