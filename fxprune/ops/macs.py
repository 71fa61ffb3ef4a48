"""Multiply-adds of an operation, from the formulas that are registered with `multiplies`.

A formula gives products of dimensions. A dimension may be an integer, its size: then the products are numbers of
multiply-adds. Or it is a vector: then the products can be counted after any removal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fxprune.errors import RuleError, nearest
from fxprune.ops.aspects import MULTIPLY_ADDS

Dims = tuple[Any, ...]
"""The dimensions of a tensor: sizes, or vectors."""

NOTHING = {
    *(
        "aten::_local_scalar_dense",
        "aten::_nested_tensor_size",
        "aten::_to_sparse",
        "aten::equal",
    ),
    *("aten::record_stream", "aten::resize_", "aten::set_"),
    *("torchvision::nms", "torchvision::roi_align", "torchvision::roi_pool"),
}
"""Operations that have no rule, and do no multiply-adds."""


def products(
    func: torch._ops.OpOverload,
    arguments: dict[str, Any],
    made: Any,
    dims: Callable[[torch.Tensor], Dims],
    fixed: Callable[[int], Any] = int,
) -> list[Dims] | None:
    """The multiply-adds of an operation as products of dimensions, None where they are unknown.

    arguments: the arguments, by the names of the schema. made: the result. dims: a function, the dimensions of a
        tensor. fixed: a function, the dimension of this size, for a number that is a factor of a formula.

    Raises `RuleError` where the formula has a parameter that the operator lacks.
    """
    name = func._schema.name
    formula = MULTIPLY_ADDS.of(name)
    if formula is None:
        return [] if _multiplies_nothing(func) else None
    names = formula.__code__.co_varnames[: formula.__code__.co_argcount]
    given = {**arguments, "out": made[0] if isinstance(made, (tuple, list)) else made}
    for key in names:
        if key not in given:
            raise RuleError(
                f'the formula of {name} names an argument "{key}", which the operator lacks',
                why=nearest(key, given),
                do="name the arguments of the formula as the schema of the operator does",
            )
    found = formula(**{key: _dims(given[key], dims) for key in names})
    if found is None:
        return None
    return [tuple(fixed(part) if isinstance(part, int) else part for part in product) for product in found]


def _dims(value: Any, dims: Callable[[torch.Tensor], Dims]) -> Any:
    """An argument as a formula gets it: tensors by their dimensions."""
    if isinstance(value, torch.Tensor):
        return dims(value)
    if isinstance(value, (tuple, list)):
        return [_dims(part, dims) for part in value]
    return value


@functools.cache
def _multiplies_nothing(func: torch._ops.OpOverload) -> bool:
    """True if an operation does no multiply-adds: it is elementwise, moves data, or sums without a second factor."""
    name = func._schema.name
    if name in MULTIPLY_ADDS.reasons or name.removesuffix("_") in MULTIPLY_ADDS.reasons:
        return True
    harmless = {torch.Tag.pointwise, torch.Tag.reduction}
    return name in NOTHING or func.is_view or bool(harmless.intersection(func.tags))


def met(a: Any, b: Any) -> Any:
    """The dimension that two operands share: `b` if `a` is a fixed vector, so that a removal is counted, else `a`."""
    return b if getattr(a, "fixed", False) else a
