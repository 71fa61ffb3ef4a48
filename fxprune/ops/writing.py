"""Writing: a tensor gets other values, or sums, at a list of positions.

The slots of a dimension that is written along must stay, unless the list is a constant of the model: then an entry of
the list goes with the slot that it names, and with the values that are written there. The other dimensions of both
tensors are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from fxprune.channels.vector import Vector
from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, carries, depends
from fxprune.ops.dependence import Dependence, Seen, moved, summed
from fxprune.ops.factors import moved_factors
from fxprune.ops.indexing import gathered, is_mask, picked, tie_chosen
from fxprune.ops.registry import Call, Operand, kept_list, rule

WRITTEN = "written to at positions"
FILLED = "filled in order with the entries of another tensor"


@rule("aten::index_put", "aten::_unsafe_index_put", "aten::_index_put_impl")
def index_put(call: Call, self: Operand, indices: Sequence[Operand | None], values: Operand) -> Operand:
    """y = x, but y[index[j], c] = values[j, c]. One value for all positions of a mask is elementwise."""
    first = next(d for d, i in enumerate(indices) if i is not None)
    mask = indices[first]
    if mask is not None and all(size == 1 for size in values.shape) and is_mask(call, first) and _alone(indices):
        vectors, zero = list(self.vectors), [False] * self.ndim
        for d, vector in enumerate(mask.vectors, start=first):
            call.same(self.dim(d), vector)
            vectors[d] = vector if self.dim(d).fixed else self.dim(d)
            zero[d] = self.zero[d] and mask.zero[d - first]  # nothing is written where the mask is false
        return call.operand(vectors, zero)
    if mask is not None and mask.ndim == 1 and _alone(indices) and not is_mask(call, first) and kept_list(mask):
        taken = list(self.vectors)
        taken[first] = gathered(call, self.dim(first), mask)
        target, positions = call.operand(taken), {d: d for d in range(self.ndim)}
    else:
        target, positions = _written_by_lists(call, self, indices)
    zero = list(self.zero)
    for d, position in positions.items():
        back = position - target.ndim
        same = values.ndim >= -back and values.shape[back] == target.shape[position]
        zero[d] = zero[d] and same and values.zero[back]
    for a, b in zip(reversed(target.vectors), reversed(values.vectors), strict=False):
        if a.size == b.size:
            call.same(a, b)
        else:
            call.lock(b, WRITTEN)
    return call.operand(self.vectors, zero)


def _written_by_lists(call: Call, self: Operand, indices: Sequence[Operand | None]) -> tuple[Operand, dict[int, int]]:
    """The operand of x[indices] with the dimensions that are written along locked, and the places of the others."""
    for listed in indices:  # without an entry of the list, one slot less would be written
        for vector in listed.vectors if listed is not None else ():
            call.lock(vector, WRITTEN)
    return picked(call, self, None, WRITTEN)


def _places(call: Call, vector: Vector, index: Operand) -> Vector | None:
    """The slots of a dimension that a list names. They go with the entries of the list.

    If the numbers are not known, or stand in code, the dimension and the list are locked, and None is returned.
    """
    if index.ndim == 1 and kept_list(index):
        return gathered(call, vector, index)
    for held in (*index.vectors, vector):
        call.lock(held, WRITTEN)
    return None


def _alone(indices: Sequence[Operand | None]) -> bool:
    """True if only one list or mask is given."""
    return sum(i is not None for i in indices) == 1


@rule("aten::put")
def put(call: Call, self: Operand, index: Operand, source: Operand) -> Operand:
    """y = x, but y.flatten()[index[j]] = source[j]"""
    call.refuse([self, index, source], "written to by positions in the flattened tensor")
    return self


@rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce", labels="own")
def scatter(call: Call, self: Operand, dim: int, index: Operand) -> Operand:
    """y = x, but y[i, index[i, j, k], k] = src[i, j, k], or added to it.

    The dimension that is written along stays, unless the index repeats a list of the model.
    """
    src = call.arguments.get("src")
    value = call.arguments.get("value")
    zero = list(self.zero)
    for d, vector in enumerate(self.vectors):
        others = [index.dim(d), *([src.dim(d)] if isinstance(src, Operand) else [])]
        along = d == dim % self.ndim
        if along and (listed := kept_list(index, d)) is not None and all(o.size == listed.shape[0] for o in others):
            taken = gathered(call, vector, listed)
            for other in others:
                call.same(taken, other)
            zero[d] = zero[d] and (src.zero[d] if isinstance(src, Operand) else value == 0)
            continue
        if along and index.labels is not None:
            for other in others:
                call.lock(other, WRITTEN)
            tie_chosen(call, vector, index, WRITTEN)
            continue  # no number is a removed position, so nothing is written there
        for other in others:
            if along or other.size != vector.size:
                call.lock(vector, WRITTEN)
                call.lock(other, WRITTEN)
            else:
                call.same(vector, other)
        zero[d] = zero[d] and (src.zero[d] if isinstance(src, Operand) else value == 0)
    return call.operand(self.vectors, zero)


@rule("aten::index_add", "aten::index_copy", "aten::index_reduce")
def index_add(call: Call, self: Operand, dim: int, index: Operand, source: Operand) -> Operand:
    """y = x, but y[i, index[j], k] = source[i, j, k], or added to it."""
    places = _places(call, self.dim(dim), index)
    for d, (a, b) in enumerate(zip(self.vectors, source.vectors, strict=True)):
        if d != dim % self.ndim:
            call.same(a, b)
        elif places is not None:
            call.same(places, b)
        else:
            call.lock(b, WRITTEN)
    return call.operand(self.vectors, [a and b for a, b in zip(self.zero, source.zero, strict=True)])


@rule("aten::index_fill")
def index_fill(call: Call, self: Operand, dim: int, index: Operand) -> Operand:
    """y = x, but y[i, index[j], k] = value"""
    _places(call, self.dim(dim), index)
    return call.operand(self.vectors, [zero and call.arguments["value"] == 0 for zero in self.zero])


@rule("aten::masked_scatter")
def masked_scatter(call: Call, self: Operand, mask: Operand, source: Operand) -> Operand:
    """y = x, but where the mask is true y takes the entries of source one after the other.

    If the mask is the same for all slots of the last dimensions, and the entries come in rows of these, whole rows are
    taken: y[i, c] = source[rank of i among the rows that are true, c].
    """
    if self.shape != call.shapes[0]:
        return call.refuse([self, mask, source], FILLED)[0]
    row, row_zero, rest = _rows(call, self.shape, source, _constant_dims(call.raw["mask"], self.ndim))
    width = len(row)
    for d, vector in enumerate(row, start=-width):
        call.same(self.dim(d), vector)
        if mask.ndim >= -d and mask.shape[d] == self.shape[d]:
            call.same(self.dim(d), mask.dim(d))
    for vector in (*self.vectors[: self.ndim - width], *mask.vectors[: max(mask.ndim - width, 0)], *rest):
        call.lock(vector, FILLED)
    zero = [a and b for a, b in zip(self.zero[self.ndim - width :], row_zero, strict=True)]
    return call.operand(self.vectors, [*(False for _ in range(self.ndim - width)), *zero])


def _constant_dims(mask: torch.Tensor, ndim: int) -> int:
    """The number of last dimensions in which all slots of an expanded mask are the same. ndim: that of the result."""
    same = (mask.ndim < -d or mask.shape[d] == 1 or mask.stride(d) == 0 for d in range(-1, -ndim - 1, -1))
    return sum(1 for _ in itertools.takewhile(bool, same))


def _rows(
    call: Call, shape: Sequence[int], source: Operand, width: int
) -> tuple[Sequence[Vector], Sequence[bool], Sequence[Vector]]:
    """The vectors of the rows that entries of `source` come in, their flags `zero`, and the other vectors of `source`.

    shape: that of the result. width: the most dimensions that a row may have.
    """
    for count in range(min(width, source.ndim), 0, -1):
        if source.shape[-count:] == tuple(shape[-count:]):
            return source.vectors[-count:], source.zero[-count:], source.vectors[:-count]
    if width and source.ndim and source.shape[-1] % shape[-1] == 0:  # rows in a flattened dimension
        outer, row = call.split(source.dim(-1), (source.shape[-1] // shape[-1], shape[-1]))
        return [row], source.zero[-1:], [*source.vectors[:-1], outer]
    return (), (), source.vectors


@rule("aten::diagonal_scatter", "aten::as_strided_scatter")
def written(call: Call, self: Operand, src: Operand) -> Operand:
    """y = x, but y[i, at] = src[i]: the dimensions that are written along stay."""
    arguments, n = call.arguments, self.ndim
    along = {arguments["dim1"] % n, arguments["dim2"] % n} if "dim1" in arguments else set(range(n))
    rest = [d for d in range(n) if d not in along]
    zero = [False] * n
    for at, d in enumerate(rest):
        call.same(self.dim(d), src.dim(at))
        zero[d] = self.zero[d] and src.zero[at]
    for vector in (*(self.dim(d) for d in along), *src.vectors[len(rest) :]):
        call.lock(vector, WRITTEN)
    return call.operand(self.vectors, zero)


depends(
    *("aten::index_copy", "aten::index_fill", "aten::masked_scatter", "aten::diagonal_scatter"),
    "aten::as_strided_scatter",
)(moved)


@depends(
    *("aten::index_put", "aten::_unsafe_index_put", "aten::_index_put_impl", "aten::put"),
    *("aten::scatter", "aten::scatter_add", "aten::scatter_reduce", "aten::index_add", "aten::index_reduce"),
)
def written_dependence(seen: Seen) -> Dependence | list[Dependence]:
    """The dependence of the tensor and of the values that are written into it; a sum depends if it is not zero."""
    changed = {"reduce": "amax"} if "reduce" in seen.raw else {"alpha": 1} if "alpha" in seen.raw else {}
    if seen.func._schema.name == "aten::scatter" and changed:
        changed = {"reduce": "add"}
    added = changed or seen.raw.get("accumulate") or seen.func._schema.name == "aten::scatter_add"
    return summed(seen, **changed) if added else moved(seen)


_OTHERS = (
    *("aten::index_put", "aten::_unsafe_index_put", "aten::_index_put_impl", "aten::put", "aten::scatter"),
    *("aten::scatter_add", "aten::scatter_reduce", "aten::index_add", "aten::index_copy", "aten::index_reduce"),
    *("aten::index_fill", "aten::masked_scatter", "aten::as_strided_scatter"),
)
carries("aten::diagonal_scatter")(moved_factors)
absent(*_OTHERS, factors=NO_FACTOR)
absent(
    "aten::diagonal_scatter",
    *_OTHERS,
    multiply_adds="nothing is multiplied",
    sizes="no argument is a size that changes",
    positions="a list of positions is renumbered where it is kept; what other positions choose from stays",
    readers="no argument is an integer that counts",
    modules="no module of torch writes at positions",
    norms="it is no statistic",
    constants=SLOT_BY_SLOT,
)
