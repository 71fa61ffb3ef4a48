"""Nested arguments and results of a forward: tensors in tuples, lists, mappings and data classes.

Any other object is treated as a leaf, even if it contains tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """A nested value with every tensor replaced by `function(tensor)`. Data classes and mappings become dicts.

    >>> map_tensors({"a": (torch.zeros(2), None)}, lambda tensor: tuple(tensor.shape))
    {'a': ((2,), None)}
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, (tuple, list)):
        made = [map_tensors(part, function) for part in value]
        return made if isinstance(value, list) else tuple(made)
    if isinstance(value, Mapping):
        return {key: map_tensors(part, function) for key, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: map_tensors(getattr(value, f.name), function) for f in dataclasses.fields(value)}
    return value


def leaves(value: Any, kind: type = torch.Tensor) -> Iterator[Any]:
    """The leaves of a nested value, in order: instances of `kind`, and objects that are no containers."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from leaves(part, kind)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from leaves(part, kind)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), kind)
    else:
        yield value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of a nested value, in order."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)]


def objects_in(value: Any) -> list[str]:
    """The type names of objects in a nested value that are neither containers, tensors, nor plain values, each once.

    An example is a cache of keys and values.
    """
    plain = (torch.Tensor, str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)
    return list(dict.fromkeys(type(leaf).__name__ for leaf in leaves(value) if not isinstance(leaf, plain)))
