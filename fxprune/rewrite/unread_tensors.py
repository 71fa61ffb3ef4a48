"""Tensors that forward does not read, with the shape that a smaller parameter had: other methods may use both."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.settings import OF_EVERY_MODULE
from fxprune.capture.containers import found_in, key_text, parts
from fxprune.capture.tensors import Tensors
from fxprune.rewrite.unread_attributes import from_inside


def unread_tensors(
    findings: Findings,
    small: nn.Module,
    state: Tensors,
    before: Mapping[str, tuple[int, ...]],
    after: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """Sentences about buffers and attributes of a small model that have the old shape of a parameter of their module.

    state: the small model's tensors. before, after: name of a parameter or buffer -> its shape in the original and in
        the small model.
    """
    cut = {name: shape for name, shape in before.items() if after.get(name, shape) != shape}
    if not cut:
        return []
    read = {name for axis in findings.axes for name in findings.names_of(axis.parameter)}
    found: list[str] = []
    originals = dict(findings.model.named_modules())
    inside = _by_module(cut)
    for path, module in small.named_modules():
        prefix = path and f"{path}."
        below = inside.get(path, {})
        for attribute, tensor in _tensors(module) if below else ():
            name, shape = prefix + attribute, tuple(tensor.shape)
            same = [other for other, old in below.items() if old == shape and other != name]
            if same and name not in read and after.get(name, shape) == before.get(name, shape):
                why = f"forward does not read it, and the parameter of that shape is {list(after[same[0]])} now"
                found.append(f'"{name}" stays {list(shape)}: {why} ("{same[0]}"); `methods=` shows what reads it')
        original = originals.get(path)
        if below and original is not None and not type(original).__module__.startswith("fxprune."):
            found += _in_containers(prefix, module, original, read, below)
    return found + _of_parameters(state, cut)


def _by_module(cut: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Path of a module -> the part of `cut` that is inside it."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in cut.items():
        for path in from_inside(name.rpartition(".")[0]):
            found.setdefault(path, {})[name] = shape
    return found


def _in_containers(
    prefix: str, module: nn.Module, original: nn.Module, read: Collection[str], cut: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Yields a sentence about each list, dict or other container with tensors that have the old shape of a parameter.

    read: the names of the tensors that forward reads. cut: name of a smaller parameter of the module -> its shape in
        the original.
    """
    shapes: dict[tuple[int, ...], str] = {}
    for name, old in cut.items():
        shapes.setdefault(old, name)
    own = functools.cache(lambda: [(f".{name}", tuple(tensor.shape)) for name, tensor in Tensors.of(module).items()])
    for attribute, value in module.__dict__.items():
        if attribute in OF_EVERY_MODULE or isinstance(value, torch.Tensor):
            continue
        before = {keys: tuple(tensor.shape) for keys, tensor in _found_in(original.__dict__.get(attribute))}
        stay = []
        for keys, tensor in _found_in(value):
            name, shape = "".join((prefix, attribute, *map(key_text, keys))), tuple(tensor.shape)
            if shape not in shapes or before.get(keys) != shape or name in read:
                continue
            if not (keys and any(other.endswith(f".{keys[-1]}") and now == shape for other, now in own())):
                stay.append((name, shape))
        if stay:
            name, shape = stay[0]
            more = f" (and {len(stay) - 1} more tensors of {prefix}{attribute})" if stay[1:] else ""
            yield (
                f'"{name}" stays {list(shape)}{more}: forward does not read it, and "{shapes[shape]}" had this shape; '
                "`methods=` shows what reads it"
            )


def _found_in(value: Any) -> Iterator[tuple[tuple[Any, ...], torch.Tensor]]:
    """The tensors in a container, each with the keys that lead to it; of a list or dict of any length."""
    plain = isinstance(value, list | tuple | deque | dict)
    seen: dict[int, Any] = {}
    for key, item in parts(value).items() if plain else ():
        yield from found_in(item, _has_sizes, seen, (key,))
    if not plain:
        yield from found_in(value, _has_sizes, seen)


def _of_parameters(state: Tensors, cut: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Sentences about tensors in attributes of smaller parameters with a size that the parameter had.

    cut: name of a smaller parameter -> its shape in the original.
    """
    found = []
    for name, parameter in ((name, state[name]) for name in cut if name in state):
        lost = {a for a, b in zip(cut[name], parameter.shape, strict=False) if a != b}
        for attribute, value in parameter.__dict__.items() if lost else ():
            for keys, tensor in found_in(value, _has_sizes, {}):
                if lost & set(tensor.shape):
                    where = "".join((attribute, *map(key_text, keys)))
                    found.append(
                        f'the attribute "{where}" of the parameter "{name}" stays {list(tensor.shape)}, '
                        f"and the parameter is {list(parameter.shape)} now"
                    )
    return found


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers of a module and the tensors in its attributes, not those inside of lists and other containers."""
    for held in (module._buffers, module.__dict__):
        for name, value in held.items():
            if isinstance(value, torch.Tensor) and _has_sizes(value):
                yield name, value


def _has_sizes(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_nested
