"""The arguments of an ATen operation: by the names of its schema, and the numbers among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily


def numbers_of(arguments: Iterable[Any], named: Mapping[str, Any]) -> tuple[float, ...]:
    """The fractions among an operation's arguments, numbers that become tensors, a scale that attention computes."""
    found = [argument for argument in arguments if type(argument) is float]
    lifted = named.get("self")
    if len(named) == 1 and type(lifted) is torch.Tensor and lifted.ndim == 0 and lifted.device.type == "cpu":
        with unset_fake_temporarily():
            found.append(float(lifted))  # a number that forward made a tensor
    query = named.get("query")
    if isinstance(query, torch.Tensor) and named.get("scale", 0) is None:
        found.append(query.shape[-1] ** -0.5)
    return tuple(found)


_SCHEMAS: dict[Any, tuple[str, tuple[str, ...], dict[str, Any]]] = {}


def bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The operator's name, and its arguments by the names of the schema, defaults filled in."""
    known = _SCHEMAS.get(func)
    if known is None:
        schema = func._schema
        defaults = {a.name: a.default_value for a in schema.arguments}
        known = _SCHEMAS[func] = (schema.name, tuple(defaults), defaults)
    name, names, defaults = known
    return name, {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
