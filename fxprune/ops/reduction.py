"""Reductions: sums, statistics and orders over dimensions.

A sum over a dimension is exact if removed slots are zero. A statistic changes with the number of slots, so its
dimension is marked. A result that holds positions locks the dimension that they are in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fxprune.ops.aspects import NO_FACTOR, absent, carries, depends, reads_constants, respells
from fxprune.ops.constants import Read, Sum
from fxprune.ops.dependence import Dependence, Seen, anything, either, over
from fxprune.ops.factors import Asked, Way
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.statistic import StatisticNode

if TYPE_CHECKING:
    from torch import fx

SUMS = "sum nansum linalg_vector_norm norm".split()
STATISTICS = """
    mean nanmean amax amin aminmax max min median nanmedian mode prod var std var_mean std_mean logsumexp all any
    count_nonzero _is_all_true _is_any_true
""".split()
POSITIONS = "argmax argmin kthvalue cummax cummin".split()
POSITION = "the result holds positions in this dimension or depends on their order"
ZERO_OF_ZEROS = {*SUMS, *"mean amax amin max min prod var std any median _is_any_true".split()}


def _dims(call: Call, ndim: int) -> list[int]:
    """The dimensions that are reduced, ascending."""
    dim = call.arguments.get("dim")
    dims: Sequence[int] = range(ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return sorted({d % ndim for d in dims}) if ndim else []


def _reduced(call: Call, x: Operand, dims: Sequence[int], vanishes: bool) -> list[Operand]:
    """The outputs of a reduction over `dims`. vanishes: True if the reduction of zeros is zero."""
    keep = bool(call.arguments.get("keepdim", False))
    vectors, zero = [], []
    for d, vector in enumerate(x.vectors):
        if d not in dims:
            vectors.append(vector)
            zero.append(x.zero[d] and vanishes)
        elif keep:
            vectors.append(call.fixed(1))
            zero.append(True)
    positions = [call.operand(vectors, False) for _ in call.shapes[1:]]
    return [call.operand(vectors, zero), *positions]


def _is_elementwise(call: Call) -> bool:
    """True for max(a, b) of two tensors, which is no reduction."""
    return isinstance(call.arguments.get("other"), Operand)


@rule(*(f"aten::{name}" for name in SUMS))
def sums(call: Call, self: Operand) -> list[Operand]:
    """y = sum_i x[i] or (sum_i |x[i]|^p)^(1/p): exact if x is zero at removed slots"""
    dims = _dims(call, self.ndim)
    for d in dims:
        if not self.zero[d]:
            call.mark(self.dim(d), "a sum over values that are not zero where the channel is gone")
    order: Any = call.arguments.get("ord", call.arguments.get("p", 2))
    if order is not None and not isinstance(order, str) and not 0 < order < float("inf"):
        for d in dims:
            call.mark(self.dim(d), f"a norm of order {order} over the channel")
    return _reduced(call, self, dims, True)


@rule(*(f"aten::{name}" for name in STATISTICS))
def statistics(call: Call, self: Operand) -> list[Operand]:
    """y = statistic_i x[i], over the slots that are left"""
    if _is_elementwise(call):
        from fxprune.ops.elementwise import elementwise

        return elementwise(call, self, call.arguments["other"])
    name = call.op.removeprefix("aten::")
    dims = _dims(call, self.ndim)
    for d in dims:
        width = name == "mean" and all(self.zero[e] for e in dims)
        call.mark(self.dim(d), f"{name} over the channel", width=width)
    return _reduced(call, self, dims, name in ZERO_OF_ZEROS)


@respells("aten::mean", targets=("mean", torch.mean))
def wide_mean(statistic: StatisticNode) -> fx.Node:
    """sum_i x_i / N = N' / N * (sum_i x_i / N'), with N slots in the original and N' left"""
    return statistic.scaled(math.prod(statistic.counts) / statistic.width)


@depends(*(f"aten::{name}" for name in (*SUMS, *STATISTICS)))
def reduction_dependence(seen: Seen) -> Dependence:
    """Depends where a reduced element does; a sum, also where one is not zero: it changes with their number."""
    if isinstance(seen.raw.get("other"), torch.Tensor):
        return either(*map(seen.of, seen.tensors))
    x = seen["self"]
    dependence: Dependence = seen.live(x) if seen.func._schema.name.removeprefix("aten::") in SUMS else seen.of(x)
    return over(dependence, x, reduced_dims(seen), bool(seen.raw.get("keepdim", False)))


@carries("aten::sum", "aten::mean", "aten::amax", "aten::amin")
def reduction_factors(asked: Asked) -> list[Way]:
    """Everything that is reduced to one number carries the factor of this number."""
    ndim, dim = len(asked["self"].shape), asked.raw.get("dim")
    dims = range(ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    factor = asked.factor
    if not asked.raw.get("keepdim", False):
        for d in sorted({d % ndim for d in dims}) if ndim else ():
            factor = factor.unsqueeze(d)
    return [{"self": factor}]


@reads_constants(*(f"aten::{name}" for name in (*SUMS, *STATISTICS)), "aten::cumsum")
def reduction_constants(seen: Seen) -> list[Read]:
    """A sum over each reduced dimension; nothing for the maximum of two tensors, which is elementwise."""
    if isinstance(seen.raw.get("other"), torch.Tensor):
        return []
    return [Sum(seen["self"], dim) for dim in reduced_dims(seen)]


def reduced_dims(seen: Seen) -> list[int]:
    """The dimensions that an operation reduces, from its arguments, ascending."""
    ndim, dim = seen["self"].ndim, seen.raw.get("dim")
    dims: Sequence[int] = range(ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    return sorted({d % ndim for d in dims}) if ndim else []


@rule(*(f"aten::{name}" for name in POSITIONS))
def positions(call: Call, self: Operand) -> list[Operand]:
    """y = positions in one dimension, or the values at them: that dimension stays"""
    dims = _dims(call, self.ndim)
    for d in dims:
        call.lock(self.dim(d), POSITION)
    outputs = []
    for shape in call.shapes:
        keep = len(shape) == self.ndim
        vectors = [
            call.fixed(shape[d]) if d in dims else vector
            for d, vector in enumerate(self.vectors)
            if keep or d not in dims
        ]
        outputs.append(call.operand(vectors, False))
    return outputs


@rule("aten::sort", "aten::argsort", labels="own")
def sort(call: Call, self: Operand) -> list[Operand]:
    """y = x in order, and the positions that its values had: that dimension stays"""
    made = positions(call, self)
    if self.labels is not None and call.op == "aten::sort":
        made[0] = replace(made[0], labels=self.labels)
    return made


@rule("aten::topk", labels="own")
def topk(call: Call, self: Operand, k: int, dim: int) -> list[Operand]:
    """y, j = the k largest x[j] of the slots that are left, and their positions; k slots must stay"""
    if self.labels is not None:
        call.lock(self.labels, POSITION)
    if not self.ndim:
        return [call.constant(0), call.constant(1)]
    vector = self.dim(dim)
    call.mark(vector, "topk chooses among the channels")
    call.least(vector, k)
    vectors = [call.fixed(k) if d == dim % self.ndim else v for d, v in enumerate(self.vectors)]
    chosen = call.operand(vectors, False)
    return [chosen, replace(chosen, labels=None if vector.fixed else vector)]


@depends(
    *("aten::argmax", "aten::argmin", "aten::kthvalue", "aten::cummax", "aten::cummin"),
    *("aten::sort", "aten::argsort", "aten::topk"),
)
def positions_dependence(seen: Seen) -> Dependence:
    """Depends if any element in the dimension does, or is not zero: positions change with the number of slots."""
    x = seen["self"]
    keep = seen.func._schema.name.removeprefix("aten::") not in ("argmax", "argmin", "kthvalue")
    return over(seen.live(x), x, reduced_dims(seen), keep or bool(seen.raw.get("keepdim", False)))


@rule("aten::searchsorted", "aten::bucketize")
def lookups(call: Call, *operands: Operand) -> list[Operand]:
    """y[i] = the number of boundaries below x[i]: refused"""
    return call.refuse(operands, POSITION)


@depends("aten::searchsorted", "aten::bucketize")
def lookups_dependence(seen: Seen) -> Dependence:
    """Everything depends if anything does."""
    return anything(seen)


@rule("aten::cumsum")
def cumsum(call: Call, self: Operand, dim: int) -> Operand:
    """y[i] = sum_{j <= i} x[j]: exact if x is zero at removed slots"""
    if self.ndim and not self.zero[dim]:
        call.mark(self.dim(dim), "a running sum over values that are not zero where the channel is gone")
    zero = [z and d != dim % max(self.ndim, 1) for d, z in enumerate(self.zero)]
    return call.operand(self.vectors, zero)


@depends("aten::cumsum", "aten::cumprod", "aten::logcumsumexp")
def running_dependence(seen: Seen) -> Dependence:
    """Depends where an element does that stands before, or there."""
    x = seen["self"]
    dependence = seen.of(x)
    if isinstance(dependence, bool) or not x.ndim:
        return dependence
    return dependence.expand(x.shape).cumsum(seen["dim"]) > 0


@rule("aten::logcumsumexp", "aten::cumprod")
def running(call: Call, self: Operand, dim: int) -> Operand:
    """y[i] = log sum_{j <= i} exp(x[j]) or prod_{j <= i} x[j], over the slots that are left"""
    if self.ndim:
        call.mark(self.dim(dim), f"{call.op.removeprefix('aten::')} over the channel")
    return call.operand(self.vectors, False)


@rule("aten::_softmax", "aten::softmax", "aten::_log_softmax", "aten::log_softmax", "aten::_safe_softmax")
def softmax(call: Call, self: Operand, dim: int) -> Operand:
    """y[i] = exp(x[i]) / sum_j exp(x[j])"""
    if self.ndim:
        call.mark(self.dim(dim), "softmax over the channel")
    if self.ndim > 2 and dim % self.ndim == self.ndim - 1:  # scores [.., heads, queries, keys]
        for vector in self.vectors[:-2]:
            call.heads(vector)
    return call.operand(self.vectors, False)


@depends("aten::_softmax", "aten::softmax", "aten::_log_softmax", "aten::log_softmax", "aten::_safe_softmax")
def softmax_dependence(seen: Seen) -> Dependence:
    """Everything depends: even the softmax of constants changes with their number."""
    return True


_EVERY = (
    *(f"aten::{name}" for name in (*SUMS, *STATISTICS, *POSITIONS, "sort", "argsort", "topk", "searchsorted")),
    *(f"aten::{name}" for name in ("bucketize", "cumsum", "logcumsumexp", "cumprod", "softmax", "log_softmax")),
    *("aten::_softmax", "aten::_log_softmax", "aten::_safe_softmax"),
)
absent(
    *_EVERY,
    multiply_adds="sums without a second factor, and statistics, are not counted",
    sizes="no argument is a size that changes",
    positions="no argument is a position",
    readers="no argument is a size that changes",
    modules="its module has no count",
)
absent(
    *(name for name in _EVERY if name not in ("aten::sum", "aten::mean", "aten::amax", "aten::amin")),
    factors=NO_FACTOR,
)
_SUMMED = {*(f"aten::{name}" for name in (*SUMS, *STATISTICS)), "aten::cumsum"}
absent(
    *(name for name in _EVERY if name not in _SUMMED),
    constants="a statistic or an order of channels is inexact or refused, and takes up no constants",
)
absent(*(name for name in _EVERY if name != "aten::mean"), norms="it says nothing of the original width")
