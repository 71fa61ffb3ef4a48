"""Indexing: reading at a list of positions.

If the numbers in the list are constants, the slots are moved, and can be removed. Otherwise the dimension that is
indexed is locked. All other dimensions of the tensor, and the dimensions of the list, are those of the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fxprune.channels.vector import Vector
from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, carries, depends
from fxprune.ops.dependence import moved
from fxprune.ops.elementwise import broadcast
from fxprune.ops.factors import Asked, Way, moved_factors, possible, reduced, values_in
from fxprune.ops.registry import Call, Operand, integers, kept_list, rule
from fxprune.ops.views import with_vectors

SPANNED = "indexed by numbers that are not known or span several dimensions"


@rule("aten::index_select", labels="own")
def index_select(call: Call, self: Operand, dim: int, index: Operand) -> Operand:
    """y[j] = x[index[j]]"""
    if index.labels is not None:
        tie_chosen(call, self.dim(dim), index, SPANNED)
        return dataclasses.replace(with_vectors(self, dim, *index.vectors), labels=self.labels)
    return with_vectors(self, dim, gathered(call, self.dim(dim), index))


@rule("aten::index", "aten::_unsafe_index", labels="own")
def index(call: Call, self: Operand, indices: Sequence[Operand | None]) -> Operand:
    """y[j, c] = x[index[j], c]; numbers that are not known lock the dimension that they index."""
    lists = [(d, i) for d, i in enumerate(indices) if i is not None]
    first = lists[0][1]
    if len(lists) == 1 and first.ndim == 1 and first.labels is None and not is_mask(call, lists[0][0]):
        made = with_vectors(self, lists[0][0], gathered(call, self.dim(lists[0][0]), first))
    else:
        made = picked(call, self, call.shapes[0], SPANNED)[0]
    return dataclasses.replace(made, labels=self.labels)


def picked(call: Call, self: Operand, shape: Sequence[int] | None, why: str) -> tuple[Operand, dict[int, int]]:
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
            if is_mask(call, position):
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
            tie_chosen(call, self.dim(at), labels[at], why)
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


def tie_chosen(call: Call, vector: Vector, index: Operand, why: str) -> None:
    """Tie the dimension that is indexed to the one that the numbers are positions in; lock it if that is unknown."""
    if index.labels is not None and index.labels.size == vector.size:
        call.same(vector, index.labels)
        return
    call.lock(vector, why)
    if index.labels is not None:
        call.lock(index.labels, "positions in this dimension choose from another one")


@rule("aten::gather", labels="own")
def gather(call: Call, self: Operand, dim: int, index: Operand) -> Operand:
    """y[i, j, k] = x[i, index[i, j, k], k]: the dimension that is indexed stays, unless the numbers are a kept list."""
    zero, vectors = list(self.zero), list(index.vectors)
    for d, (vector, listed) in enumerate(zip(self.vectors, index.vectors, strict=True)):
        if d == dim % len(zero) and (known := kept_list(index, d)) is not None:
            vectors[d] = gathered(call, vector, known)
        elif d == dim % len(zero):
            tie_chosen(call, vector, index, "gathered by numbers that are not known")
            zero[d] = False
        elif vector.size == listed.size:
            call.same(vector, listed)
        else:
            call.lock(vector, "gathered in part")
            call.lock(listed, "gathered in part")
    return dataclasses.replace(call.operand(vectors, zero), labels=self.labels)


@rule("aten::take")
def take(call: Call, self: Operand, index: Operand) -> Operand:
    """y[j] = x.flatten()[index[j]]"""
    for vector in self.vectors:
        call.lock(vector, "taken from by positions in the flattened tensor")
    return call.operand(index.vectors, False)


depends("aten::index_select", "aten::index", "aten::_unsafe_index", "aten::gather", "aten::take")(moved)


def gathered(call: Call, vector: Vector, index: Operand) -> Vector:
    """The vector of x[index] for one list. A list in a buffer is renumbered; unknown numbers lock the vector."""
    if index.ndim == 1:
        index = kept_list(index) or index
    positions = integers(index)
    if positions is None or index.ndim == 0:
        call.lock(vector, "indexed by numbers that are not known")
        return index.dim(0) if index.ndim else call.fixed(1)
    taken = vector.take(positions % vector.size)
    if not index.dim(0).fixed:
        call.same(taken, index.dim(0))
    call.renumber(index, vector)
    return taken


def is_mask(call: Call, position: int) -> bool:
    """True if the list at a position of `indices` is a mask."""
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


absent("aten::_unsafe_index", "aten::take", factors=NO_FACTOR)
absent(
    *("aten::index_select", "aten::index", "aten::_unsafe_index", "aten::gather", "aten::take"),
    multiply_adds="nothing is multiplied",
    sizes="no argument is a size that changes",
    positions="a list of positions is renumbered where it is kept; what other positions choose from stays",
    readers="no argument is an integer that counts",
    modules="no module of torch indexes",
    norms="it is no statistic",
    constants=SLOT_BY_SLOT,
)
