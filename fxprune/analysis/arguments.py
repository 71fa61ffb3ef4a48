"""The arguments of an ATen operation by name, and the fractions among them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily


def numbers_of(name: str, named: Mapping[str, Any]) -> tuple[float, ...]:
    """The fractions that an operation is called with. In a small model they must be the same as in the original.

    name: the name of the operation. named: its arguments by their names.

    Includes an integer that a tensor of fractions is multiplied with or divided by, a number that forward turned into a
    tensor, and the scale that attention computes from the width.
    """
    found = [argument for argument in named.values() if type(argument) is float]
    found += [float(named[argument]) for argument in integers_among(named)]
    lifted = named.get("self")
    if name == "aten::lift_fresh" and type(lifted) is torch.Tensor and not lifted.ndim and lifted.device.type == "cpu":
        with unset_fake_temporarily():
            found.append(float(lifted))  # such as torch.tensor(0.5)
    query = named.get("query")
    if isinstance(query, torch.Tensor) and named.get("scale", 0) is None:
        found.append(query.shape[-1] ** -0.5)
    return tuple(found)


def integers_among(named: Mapping[str, Any]) -> list[str]:
    """The arguments that are integers and meet a tensor of fractions: "other" of `x / 8`, or none."""
    other, tensor = named.get("other"), named.get("self")
    fractions = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    return ["other"] if fractions and isinstance(other, int) and not isinstance(other, bool) else []


_SCHEMAS: dict[Any, tuple[str, tuple[str, ...], dict[str, Any]]] = {}


def bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of an operator, and its arguments by the names in its schema, with defaults filled in."""
    known = _SCHEMAS.get(func)
    if known is None:
        schema = func._schema
        defaults = {a.name: a.default_value for a in schema.arguments}
        known = _SCHEMAS[func] = (schema.name, tuple(defaults), defaults)
    name, names, defaults = known
    return name, {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
