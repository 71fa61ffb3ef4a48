"""Indexing: reading and writing at a list of positions.

If the numbers in the list are constants, the slots are moved, and can be removed. Otherwise the dimension that is
indexed is locked. All other dimensions of the tensor, and the dimensions of the list, are those of the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fxprune.channels.vector import Vector
from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, carries, depends
from fxprune.ops.dependence import Dependence, Seen, anything, moved, summed
from fxprune.ops.elementwise import broadcast
from fxprune.ops.factors import Asked, Way, moved_factors, possible, reduced, values_in
from fxprune.ops.registry import Call, Operand, integers, rule
from fxprune.ops.views import with_vectors

SPANNED = "indexed by numbers that are not known or span several dimensions"
WRITTEN = "written to at positions"


@rule("aten::index_select", labels="own")
def index_select(call: Call, self: Operand, dim: int, index: Operand) -> Operand:
    """y[j] = x[index[j]]"""
    if index.labels is not None:
        _chosen(call, self.dim(dim), index, SPANNED)
        return dataclasses.replace(with_vectors(self, dim, *index.vectors), labels=self.labels)
    return with_vectors(self, dim, gathered(call, self.dim(dim), index))


@rule("aten::index", "aten::_unsafe_index", labels="own")
def index(call: Call, self: Operand, indices: Sequence[Operand | None]) -> Operand:
    """y[j, c] = x[index[j], c]; numbers that are not known lock the dimension that they index."""
    lists = [(d, i) for d, i in enumerate(indices) if i is not None]
    first = lists[0][1]
    if len(lists) == 1 and first.ndim == 1 and first.labels is None and not _is_mask(call, lists[0][0]):
        made = with_vectors(self, lists[0][0], gathered(call, self.dim(lists[0][0]), first))
    else:
        made = _picked(call, self, call.shapes[0], SPANNED)[0]
    return dataclasses.replace(made, labels=self.labels)


@rule("aten::index_put", "aten::_unsafe_index_put", "aten::_index_put_impl")
def index_put(call: Call, self: Operand, indices: Sequence[Operand | None], values: Operand) -> Operand:
    """y = x, but y[index[j], c] = values[j, c]. One value for all positions of a mask is elementwise."""
    first = next(d for d, i in enumerate(indices) if i is not None)
    mask = indices[first]
    if mask is not None and all(size == 1 for size in values.shape) and _is_mask(call, first) and _alone(indices):
        vectors, zero = list(self.vectors), [False] * self.ndim
        for d, vector in enumerate(mask.vectors, start=first):
            call.same(self.dim(d), vector)
            vectors[d] = vector if self.dim(d).fixed else self.dim(d)
            zero[d] = self.zero[d] and mask.zero[d - first]  # nothing is written where the mask is false
        return call.operand(vectors, zero)
    for listed in indices:  # without an entry of the list, one slot less would be written
        for vector in listed.vectors if listed is not None else ():
            call.lock(vector, WRITTEN)
    target, positions = _picked(call, self, None, WRITTEN)
    zero = list(self.zero)
    for d, position in positions.items():
        back = position - target.ndim
        zero[d] = zero[d] and values.ndim >= -back and values.shape[back] == self.shape[d] and values.zero[back]
    for a, b in zip(reversed(target.vectors), reversed(values.vectors), strict=False):
        if a.size == b.size:
            call.same(a, b)
        else:
            call.lock(b, WRITTEN)
    return call.operand(self.vectors, zero)


def _alone(indices: Sequence[Operand | None]) -> bool:
    """True if only one list or mask is given."""
    return sum(i is not None for i in indices) == 1


def _picked(call: Call, self: Operand, shape: Sequence[int] | None, why: str) -> tuple[Operand, dict[int, int]]:
    """The operand of x[indices], for any lists and masks, and the new place of each dimension that is not indexed.

    Indexed dimensions are locked, for the reason `why`. As in torch, the dimensions of the lists come where the first
    list stood, or first of all if there is another dimension between two lists. A mask indexes as many dimensions as it
    has, and is like one list, whose length depends on the data. shape: that of the result, None if it is not needed.
    """
    indices: Sequence[Operand | None] = call.arguments["indices"]
    dims: list[int] = []
    lists: list[Operand] = []
    labels: dict[int, Operand] = {}
    d = 0
    for position, listed in enumerate(indices):
        width = 1
        if listed is not None:
            if _is_mask(call, position):
                width = listed.ndim
                for vector in listed.vectors:
                    call.lock(vector, why)
            else:
                lists.append(listed)
                if listed.labels is not None:
                    labels[d] = listed
            dims += range(d, d + width)
        d += width
    for at in dims:
        if at in labels:
            _chosen(call, self.dim(at), labels[at], why)
        else:
            call.lock(self.dim(at), why)
    first = dims[0] if dims == list(range(dims[0], dims[0] + len(dims))) else 0
    if lists:
        listed_vectors = broadcast(call, lists, np.broadcast_shapes(*(o.shape for o in lists)))
    else:
        listed_vectors = (call.fixed(1 if shape is None else shape[first]),)
    rest = [at for at in range(self.ndim) if at not in dims]
    order = [*rest[:first], *(None for _ in listed_vectors), *rest[first:]]
    free = iter(listed_vectors)
    vectors = [next(free) if at is None else self.dim(at) for at in order]
    picked = call.operand(vectors, [at is not None and self.zero[at] for at in order])
    return picked, {at: position for position, at in enumerate(order) if at is not None}


def _chosen(call: Call, vector: Vector, index: Operand, why: str) -> None:
    """Tie the dimension that is indexed to the one that the numbers are positions in; lock it if that is unknown."""
    if index.labels is not None and index.labels.size == vector.size:
        call.same(vector, index.labels)
        return
    call.lock(vector, why)
    if index.labels is not None:
        call.lock(index.labels, "positions in this dimension choose from another one")


@rule("aten::gather", labels="own")
def gather(call: Call, self: Operand, dim: int, index: Operand) -> Operand:
    """y[i, j, k] = x[i, index[i, j, k], k]: the dimension that is indexed stays."""
    zero = list(self.zero)
    for d, (vector, listed) in enumerate(zip(self.vectors, index.vectors, strict=True)):
        if d == dim % len(zero):
            _chosen(call, vector, index, "gathered by numbers that are not known")
            zero[d] = False
        elif vector.size == listed.size:
            call.same(vector, listed)
        else:
            call.lock(vector, "gathered in part")
            call.lock(listed, "gathered in part")
    return dataclasses.replace(call.operand(index.vectors, zero), labels=self.labels)


@rule("aten::take")
def take(call: Call, self: Operand, index: Operand) -> Operand:
    """y[j] = x.flatten()[index[j]]"""
    for vector in self.vectors:
        call.lock(vector, "taken from by positions in the flattened tensor")
    return call.operand(index.vectors, False)


@rule("aten::put")
def put(call: Call, self: Operand, index: Operand, source: Operand) -> Operand:
    """y = x, but y.flatten()[index[j]] = source[j]"""
    call.refuse([self, index, source], "written to by positions in the flattened tensor")
    return self


@rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce", labels="own")
def scatter(call: Call, self: Operand, dim: int, index: Operand) -> Operand:
    """y = x, but y[i, index[i, j, k], k] = src[i, j, k]: the dimension that is written along stays."""
    src = call.arguments.get("src")
    value = call.arguments.get("value")
    zero = list(self.zero)
    for d, vector in enumerate(self.vectors):
        others = [index.dim(d), *([src.dim(d)] if isinstance(src, Operand) else [])]
        along = d == dim % self.ndim
        if along and index.labels is not None:
            for other in others:
                call.lock(other, WRITTEN)
            _chosen(call, vector, index, WRITTEN)
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
    """y = x, but y[i, index[j], k] = source[i, j, k], or added to it: the dimension that is written along stays."""
    for vector in (*index.vectors, self.dim(dim), source.dim(dim)):
        call.lock(vector, WRITTEN)
    for a, b in zip(self.vectors, source.vectors, strict=True):
        if a.size == b.size:
            call.same(a, b)
    return call.operand(self.vectors, [a and b for a, b in zip(self.zero, source.zero, strict=True)])


@rule("aten::index_fill")
def index_fill(call: Call, self: Operand, dim: int, index: Operand) -> Operand:
    """y = x, but y[i, index[j], k] = value: the dimension that is written along stays."""
    for vector in (*index.vectors, self.dim(dim)):
        call.lock(vector, WRITTEN)
    return call.operand(self.vectors, [zero and call.arguments["value"] == 0 for zero in self.zero])


@rule("aten::masked_scatter")
def masked_scatter(call: Call, self: Operand, mask: Operand, source: Operand) -> Operand:
    """y = x, but where the mask is true y takes the entries of source one after the other."""
    call.refuse([self, mask, source], "filled in order with the entries of another tensor")
    return call.constant()


@rule("aten::select_scatter", "aten::slice_scatter", "aten::diagonal_scatter", "aten::as_strided_scatter")
def written(call: Call, self: Operand, src: Operand) -> Operand:
    """y = x, but y[i, at] = src[i]: the dimensions that are written along stay."""
    arguments, n = call.arguments, self.ndim
    if "dim" in arguments:
        along = {arguments["dim"] % n}
    else:
        along = {arguments["dim1"] % n, arguments["dim2"] % n} if "dim1" in arguments else set(range(n))
    rest = [d for d in range(n) if d not in along]
    kept = [d for d in range(src.ndim) if d not in along] if src.ndim == n else list(range(len(rest)))
    zero = [False] * n
    for d, at in zip(rest, kept, strict=True):
        call.same(self.dim(d), src.dim(at))
        zero[d] = self.zero[d] and src.zero[at]
    for vector in (*(self.dim(d) for d in along), *(v for at, v in enumerate(src.vectors) if at not in kept)):
        call.lock(vector, WRITTEN)
    return call.operand(self.vectors, zero)


@rule(
    *("aten::nonzero", "aten::nonzero_static", "aten::masked_select", "aten::bincount"),
    *("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
)
def counted(call: Call, *operands: Operand) -> list[Operand]:
    """y = the positions or values of those entries that are not zero, that a mask selects, or that are unique"""
    return call.refuse(operands, "how many entries there are is data")


depends(
    *("aten::index_select", "aten::index", "aten::_unsafe_index", "aten::gather", "aten::take", "aten::index_copy"),
    *("aten::index_fill", "aten::masked_scatter", "aten::select_scatter", "aten::slice_scatter"),
    *("aten::diagonal_scatter", "aten::as_strided_scatter"),
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


depends(
    *("aten::nonzero", "aten::nonzero_static", "aten::masked_select", "aten::bincount"),
    *("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
)(anything)


def gathered(call: Call, vector: Vector, index: Operand) -> Vector:
    """The vector of x[index] for one list. A list in a buffer is renumbered; unknown numbers lock the vector."""
    positions = integers(index)
    if positions is None or index.ndim == 0:
        call.lock(vector, "indexed by numbers that are not known")
        return index.dim(0) if index.ndim else call.fixed(1)
    taken = vector.take(positions % vector.size)
    if not index.dim(0).fixed:
        call.same(taken, index.dim(0))
    call.renumber(index, vector)
    return taken


def _is_mask(call: Call, position: int) -> bool:
    return str(call.raw["indices"][position].dtype) in ("torch.bool", "torch.uint8")


def reads_known_slots(asked: Asked) -> bool:
    """True if an operation picks by lists of positions whose numbers are known."""
    given = [v for name, value in asked.raw.items() if name != "self" for v in values_in(value)]
    return bool(given) and all(value.positions is not None for value in given)


@carries("aten::index_select", "aten::index", "aten::gather")
def index_factors(asked: Asked) -> list[Way]:
    """The slots that are read carry the factor; all of them, where it is not known which these are."""
    moved = possible(lambda: moved_factors(asked)[0]) if reads_known_slots(asked) else []
    return moved or possible(lambda: {"self": reduced(asked.factor, range(asked.factor.ndim)).reshape(())})


_SCATTERS = ("aten::select_scatter", "aten::slice_scatter", "aten::diagonal_scatter")
carries(*_SCATTERS)(moved_factors)
absent(
    *("aten::_unsafe_index", "aten::index_put", "aten::_unsafe_index_put", "aten::_index_put_impl", "aten::take"),
    *("aten::put", "aten::scatter", "aten::scatter_add", "aten::scatter_reduce", "aten::index_add"),
    *("aten::index_copy", "aten::index_reduce", "aten::index_fill", "aten::masked_scatter", "aten::nonzero"),
    *("aten::as_strided_scatter", "aten::nonzero_static", "aten::masked_select", "aten::bincount", "aten::_unique"),
    *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
    factors=NO_FACTOR,
)
absent(
    *("aten::index_select", "aten::index", "aten::_unsafe_index", "aten::index_put", "aten::_unsafe_index_put"),
    *("aten::_index_put_impl", "aten::gather", "aten::take", "aten::put", "aten::scatter", "aten::scatter_add"),
    *("aten::scatter_reduce", "aten::index_add", "aten::index_copy", "aten::index_reduce", "aten::index_fill"),
    *("aten::masked_scatter", "aten::select_scatter", "aten::slice_scatter", "aten::diagonal_scatter"),
    *("aten::as_strided_scatter", "aten::nonzero", "aten::nonzero_static", "aten::masked_select", "aten::bincount"),
    *("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
    multiply_adds="nothing is multiplied",
    sizes="no argument is a size that changes",
    positions="a list of positions is renumbered where it is kept; what other positions choose from stays",
    readers="no argument is an integer that counts",
    modules="no module of torch indexes",
    norms="it is no statistic",
    constants=SLOT_BY_SLOT,
)
