"""Multiply-adds of every operation that contracts: one table, for sizes and for vectors alike.

A formula says what an operation multiplies and adds up as products of dimensions. It never looks at what a dimension
is: with integers the products are counts, with vectors they are counts after any removal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from fxprune.errors import RuleError, nearest
from fxprune.ops.attention import KERNELS
from fxprune.ops.registry import name_of, rule_for

Dims = tuple[Any, ...]
Formula = Callable[..., "Sequence[Dims]"]
FormulaT = TypeVar("FormulaT", bound=Formula)

UNCOUNTED = frozenset({"aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r"})
"""Operations with a rule that do contract, and of which nobody counts the multiply-adds."""

NOTHING = frozenset(
    f"aten::{name}"
    for name in """
    _local_scalar_dense _nested_tensor_size _unique2 _to_sparse bincount equal is_same_size masked_fill_ nonzero
    nonzero_static randperm record_stream repeat_interleave resize_ set_ unique_consecutive unique_dim
    """.split()
) | {"torchvision::nms", "torchvision::roi_align", "torchvision::roi_pool"}
"""Operations without a rule that multiply nothing with anything."""

_FORMULAS: dict[str, tuple[Formula, tuple[str, ...]]] = {}


def multiplies(*operations: Any) -> Callable[[FormulaT], FormulaT]:
    """Register how many multiply-adds operations do: a list of products, each a tuple of dimensions.

    The function is called with those arguments of the operation that it names, as the operator's schema spells them: a
    tensor is the tuple of its dimensions, a list of tensors a list of such tuples; `out` is the output, the first one
    where there are several. What multiplies nothing returns an empty list.

    An operation has one formula: registering a second one raises `RuleError`.

    >>> @multiplies("mylib::filter")
    ... def filter_rows(input, kernel):  # y[n, s] = sum_k kernel[k] * x[n, s + k]
    ...     return [(*input, *kernel)]
    """

    def register(function: FormulaT) -> FormulaT:
        code = function.__code__
        for name in map(name_of, operations):
            if name in _FORMULAS:
                raise RuleError(f"the multiply-adds of {name} are counted already")
            _FORMULAS[name] = function, code.co_varnames[: code.co_argcount]
        return function

    return register


def products(
    func: torch._ops.OpOverload, arguments: dict[str, Any], made: Any, dims: Callable[[torch.Tensor], Dims]
) -> list[Dims] | None:
    """What an operation multiplies and adds up, as products of dimensions; None where nobody knows.

    arguments: by the names of the schema. made: its result. dims: the dimensions of a tensor.
    """
    name = func._schema.name
    known = _FORMULAS.get(name) or _FORMULAS.get(name.removesuffix("_"))
    if known is None:
        return [] if _multiplies_nothing(func) else None
    formula, names = known
    given = {**arguments, "out": made[0] if isinstance(made, (tuple, list)) else made}
    for key in names:
        if key not in given:
            raise RuleError(
                f'the formula of {name} names an argument "{key}", which the operator lacks', why=nearest(key, given)
            )
    return list(formula(**{key: _dims(given[key], dims) for key in names}))


def _dims(value: Any, dims: Callable[[torch.Tensor], Dims]) -> Any:
    if isinstance(value, torch.Tensor):
        return dims(value)
    if isinstance(value, (tuple, list)):
        return [_dims(part, dims) for part in value]
    return value


@functools.cache
def _multiplies_nothing(func: torch._ops.OpOverload) -> bool:
    """An operation of torch that works slot by slot, moves data, or sums up without a second factor."""
    name = func._schema.name
    if name in UNCOUNTED:
        return False
    function = rule_for(func)
    if function is not None and function.__module__.startswith("fxprune.ops."):
        return True
    harmless = {torch.Tag.pointwise, torch.Tag.reduction}
    return name in NOTHING or func.is_view or bool(harmless.intersection(func.tags))


def _met(a: Any, b: Any) -> Any:
    """One dimension of two operands: that of a weight rather than that of an input, which is fixed."""
    return b if getattr(a, "fixed", False) else a


@multiplies("aten::mm", "aten::_int_mm")
def _mm(self: Dims, mat2: Dims) -> list[Dims]:
    """m k n"""
    return [(self[0], _met(self[1], mat2[0]), mat2[1])]


@multiplies("aten::_scaled_mm")
def _scaled_mm(self: Dims, mat2: Dims) -> list[Dims]:
    return _mm(self, mat2)


@multiplies("aten::addmm")
def _addmm(mat1: Dims, mat2: Dims) -> list[Dims]:
    return _mm(mat1, mat2)


@multiplies("aten::bmm")
def _bmm(self: Dims, mat2: Dims) -> list[Dims]:
    """b m k n"""
    return [(_met(self[0], mat2[0]), self[1], _met(self[2], mat2[1]), mat2[2])]


@multiplies("aten::baddbmm", "aten::addbmm")
def _baddbmm(batch1: Dims, batch2: Dims) -> list[Dims]:
    return _bmm(batch1, batch2)


@multiplies("aten::_grouped_mm")
def _grouped_mm(self: Dims, mat2: Dims) -> list[Dims]:
    """m k n: each row, column or term of the sum belongs to one matrix; e m k n where all have the same size."""
    if len(self) == 3 and len(mat2) == 3:
        return _bmm(self, mat2)
    return [(self[-2], _met(self[-1], mat2[-2]), mat2[-1])]


@multiplies("aten::addr")
def _addr(vec1: Dims, vec2: Dims) -> list[Dims]:
    return [(*vec1, *vec2)]


@multiplies("aten::mv")
def _mv(self: Dims, vec: Dims) -> list[Dims]:
    return [(self[0], _met(self[1], vec[0]))]


@multiplies("aten::addmv")
def _addmv(mat: Dims, vec: Dims) -> list[Dims]:
    return _mv(mat, vec)


@multiplies("aten::dot")
def _dot(self: Dims, tensor: Dims) -> list[Dims]:
    return [(_met(self[0], tensor[0]),)]


@multiplies("aten::vdot")
def _vdot(self: Dims, other: Dims) -> list[Dims]:
    return _dot(self, other)


@multiplies("aten::linear")
def _linear(input: Dims, weight: Dims) -> list[Dims]:
    return [(*input[:-1], _met(input[-1], weight[-1]), *weight[:-1])]


@multiplies("aten::_trilinear")
def _trilinear(
    i1: Dims,
    i2: Dims,
    i3: Dims,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
) -> list[Dims]:
    """Two products one after the other: what only the first two have is summed over in the first."""
    total = len(i1) + len(expand1)
    full = []
    for dims, expand in ((i1, expand1), (i2, expand2), (i3, expand3)):
        left = iter(dims)
        full.append([None if d in expand else next(left) for d in range(total)])
    first = [_either(a, b) for a, b in zip(full[0], full[1], strict=True)]
    rest = [None if d in sumdim and full[2][d] is None else size for d, size in enumerate(first)]
    second = [_either(a, b) for a, b in zip(rest, full[2], strict=True)]
    return [tuple(size for size in letters if size is not None) for letters in (first, second)]


def _either(a: Any, b: Any) -> Any:
    return b if a is None else a if b is None else _met(a, b)


@multiplies("aten::_cdist_forward", "aten::_euclidean_dist")
def _distances(x1: Dims, x2: Dims, out: Dims) -> list[Dims]:
    """One for each slot of each pair"""
    return [(*out, _met(x1[-1], x2[-1]))]


@multiplies("aten::convolution", "aten::_convolution", "aten::convolution_overrideable")
def _convolution(input: Dims, weight: Dims, out: Dims, transposed: bool) -> list[Dims]:
    """n (g o) i k s': the whole weight at each position of the output; transposed, at each of the input"""
    spatial = len(weight) - 2
    places = input if transposed else out
    return [(*input[: len(input) - spatial - 1], *weight, *places[len(places) - spatial :])]


@multiplies("aten::cudnn_convolution")
def _cudnn_convolution(self: Dims, weight: Dims, out: Dims) -> list[Dims]:
    return _convolution(self, weight, out, False)


@multiplies(*(f"aten::{name}" for name in KERNELS))
def _attention(query: Dims, key: Dims, value: Dims) -> list[Dims]:
    """n h l s e and n h l s f; a causal mask is not taken off"""
    batch, heads, length, width = query[0], query[1], query[2], _met(query[3], key[3])
    return [(batch, heads, length, key[2], width), (batch, heads, length, key[2], value[3])]


@multiplies("aten::mkldnn_rnn_layer")
def _one_layer(input: Dims, weight0: Dims, weight1: Dims, weight2: Dims, weight3: Dims) -> list[Dims]:
    """All matrices at each step of each sequence"""
    return [(*input[:-1], *weight) for weight in (weight0, weight1, weight2, weight3) if len(weight) == 2]


@multiplies("aten::_cudnn_rnn")
def _all_layers(input: Dims, weight: Sequence[Dims]) -> list[Dims]:
    return [(*input[:-1], *matrix) for matrix in weight if len(matrix) == 2]
