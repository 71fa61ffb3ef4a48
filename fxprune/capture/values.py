"""Nested arguments and results of a forward: tensors in tuples, lists, mappings, data classes and distributions.

Any other object is treated as a leaf, even if it contains tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.distributions import Distribution, Transform


def named_parts(value: Any) -> dict[str, Any] | None:
    """The fields of a data class, or the parameters of a distribution of torch, by their names; None for other values.

    >>> list(named_parts(torch.distributions.Normal(torch.zeros(2), torch.ones(2))))
    ['loc', 'scale']
    """
    if isinstance(value, (Distribution, Transform)):
        return _parameters(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def _parameters(value: Distribution | Transform) -> dict[str, Any]:
    """The tensors of a distribution or a transform, and the distributions and transforms that it is made of.

    Public attributes come first: `logits` of a `Categorical` is one with its `_param`, and named once. What a transform
    remembers of its last call is none of them, nor is the inverse of one.
    """
    found: dict[int, tuple[str, Any]] = {}
    for name, part in sorted(vars(value).items(), key=lambda item: item[0].startswith("_")):
        if name not in ("_cached_x_y", "_inv") and _describes(part):
            found.setdefault(id(part), (name, part))
    return dict(found.values())


def _describes(part: Any) -> bool:
    """True for a tensor, a distribution, a transform, or several of them."""
    if isinstance(part, (list, tuple)) and not isinstance(part, torch.Size):
        return any(map(_describes, part))
    return isinstance(part, (torch.Tensor, Distribution, Transform))


def map_tensors(value: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """A nested value with every tensor replaced by `function(tensor)`.

    Mappings, data classes and distributions become dicts.

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
    parts = named_parts(value)
    return value if parts is None else {name: map_tensors(part, function) for name, part in parts.items()}


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
    elif (named := named_parts(value)) is not None:
        for part in named.values():
            yield from leaves(part, kind)
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
