"""What remains after unification: channels, and groups of interchangeable channels.

A *channel* is a class of atoms with every parameter slot that goes with it: the smallest thing that can be
removed. Channels with the same footprint (the same dimensions of the same parameters, as often) form a *group*
and compete with each other.

Everything is kept in flat arrays, one entry per (channel, slot) pair; objects are made when somebody looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Axis:
    """One dimension of one parameter or buffer, and its vector."""

    parameter: str
    dim: int
    vector: Vector
    shape: tuple[int, ...]


@dataclass(eq=False)
class Solution:
    """The entries: channel `channel[e]` takes slot `slot[e]` of place `place[e]`, by column `column[e]` of its vector.

    A *place* is a vector with all the axes that have it: a layer's output stands in its weight, its bias, the norm
    after it and the input of the next layer, and is looked at once. `places[p]` lists the axes of place p.

    Free channels are numbered 0, 1, ... in the order of their atoms, groups in the order of their first parameters.
    `roots[c]` is the atom that represents channel c, `group[c]` its group. `held` lists (event, axis, slots) of what is
    locked.
    """

    terms: Terms
    axes: list[Axis]
    places: list[list[int]]
    roots: Ints
    group: Ints
    channel: Ints
    place: Ints
    column: Ints
    slot: Ints
    held: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def channels(self) -> int:
        """How many free channels there are."""
        return len(self.roots)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @cached_property
    def by_group(self) -> list[Ints]:
        """The channels of each group, ascending."""
        order = np.argsort(self.group, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.group, minlength=self.groups))[:-1]) if len(order) else []

    @cached_property
    def _entries_by_group(self) -> list[Ints]:
        groups = self.group[self.channel]
        order = np.argsort(groups, kind="stable")
        return np.split(order, np.cumsum(np.bincount(groups, minlength=self.groups))[:-1]) if len(order) else []

    def entries(self, group: int) -> Ints:
        """The entries of a group's channels, ordered by place and slot."""
        return self._entries_by_group[group]

    @cached_property
    def by_place(self) -> list[Ints]:
        """The entries of each place, ordered by slot."""
        order = np.argsort(self.place, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.place, minlength=len(self.places)))[:-1])

    @cached_property
    def number(self) -> Ints:
        """The channel of each atom's root, -1 for none."""
        table = np.full(self.terms.count, -1, dtype=np.int64)
        table[self.roots] = np.arange(len(self.roots))
        return table

    def channels_of(self, vector: Vector) -> list[Ints]:
        """Per column the channel of every slot, -1 where the column has none."""
        if vector.untouched:
            return []
        return [self.number[column] for column in self.terms.resolve(vector).columns]

    def cost(self) -> Ints:
        """Parameter elements that go with each channel alone: what one channel costs."""
        sizes = np.zeros(len(self.places))
        for place, axes in enumerate(self.places):
            sizes[place] = sum(math.prod(a.shape) // max(a.shape[a.dim], 1) for a in map(self.axes.__getitem__, axes))
        return np.bincount(self.channel, weights=sizes[self.place], minlength=self.channels).astype(np.int64)


class Removal:
    """A set of channels that go, and what that means for any vector."""

    def __init__(self, solution: Solution, removed: Bools) -> None:
        self.solution = solution
        self.removed = removed
        self._atoms = np.zeros(solution.terms.count, dtype=bool)
        self._atoms[solution.roots[removed]] = True
        self._kept: dict[Vector, tuple[Bools | None, int]] = {}

    def kept(self, vector: Vector) -> Bools | None:
        """Which slots survive; None when all do."""
        return self._look_up(vector)[0]

    def count(self, vector: Vector) -> int:
        """How many slots survive."""
        return self._look_up(vector)[1]

    def _look_up(self, vector: Vector) -> tuple[Bools | None, int]:
        vector = vector.representative
        if vector.fixed or vector.untouched:
            return None, vector.size
        known = self._kept.get(vector)
        if known is None:
            gone = np.zeros(vector.size, dtype=bool)
            for column in self.solution.terms.resolve(vector).columns:
                gone |= self._atoms[column]
            lost = int(np.count_nonzero(gone))
            known = self._kept[vector] = (~gone if lost else None, vector.size - lost)
        return known

    def shape(self, vectors: Sequence[Vector]) -> tuple[int, ...]:
        """The new size of each dimension."""
        return tuple(self.count(v) for v in vectors)


def solve(terms: Terms, axes: list[Axis]) -> Solution:
    """Read channels and groups off the unified terms. All in bulk: counting and hashing, no loop over channels."""
    numbers: dict[Vector, int] = {}
    places: list[list[int]] = []
    for number, axis in enumerate(axes):
        at = numbers.setdefault(axis.vector.representative, len(places))
        if at == len(places):
            places.append([])
        places[at].append(number)
    none = np.zeros(0, dtype=np.int64)
    parts = [(p, k, column) for v, p in numbers.items() for k, column in enumerate(v.columns, start=1)]
    sizes = [len(column) for _, _, column in parts]
    place_of = np.repeat(np.array([p for p, _, _ in parts], dtype=np.int64), sizes)
    column_of = np.repeat(np.array([k for _, k, _ in parts], dtype=np.int64), sizes)
    slot_of = np.concatenate([np.arange(size) for size in sizes]) if parts else none
    atoms = np.concatenate([column for _, _, column in parts]) if parts else none
    atoms, entry, column = terms.expand_all(atoms, column_of)
    place, slot = place_of[entry], slot_of[entry]
    events = terms.event(atoms)
    free = events == 0
    starts = np.cumsum([0, *(axes[members[0]].vector.size for members in places)])
    movable = np.zeros(starts[-1], dtype=bool)
    movable[(starts[place] + slot)[free]] = True
    stuck = ~movable[starts[place] + slot]  # a slot with a locked atom and a free one can go with the free one
    held = [
        (event, axis, count) for event, at, count in _count_held(events[stuck], place[stuck]) for axis in places[at]
    ]
    atoms, place, slot, column = atoms[free], place[free], slot[free], column[free]
    present = np.zeros(terms.count, dtype=bool)
    present[atoms] = True
    roots = np.flatnonzero(present)
    channel = (np.cumsum(present) - 1)[atoms]
    group = _footprints(channel, place, column, len(roots))
    return Solution(terms, axes, places, roots, group, channel, place, column, slot, held)


def _count_held(events: Ints, place: Ints) -> list[tuple[int, int, int]]:
    """(event, place, slots) of what is locked, dimensions that are no channels left out."""
    locked = events > 1
    keys, counts = np.unique(np.stack([events[locked], place[locked]]), axis=1, return_counts=True)
    return [(int(e), int(p), int(n)) for e, p, n in zip(keys[0], keys[1], counts, strict=True)]


def _footprints(channel: Ints, place: Ints, column: Ints, channels: int) -> Ints:
    """Number the channels by footprint: equal multisets of (place, column) get the same number, in order of place.

    A multiset is compared by the sum of its members' 64-bit hashes (splitmix64), modulo 2^64.
    """
    with np.errstate(over="ignore"):
        mixed = (place.astype(np.uint64) << np.uint64(32)) + column.astype(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        prints = np.zeros(channels, dtype=np.uint64)
        np.add.at(prints, channel, mixed ^ (mixed >> np.uint64(31)))
    _, inverse = np.unique(prints, return_inverse=True)
    first = np.full(int(inverse.max()) + 1 if channels else 0, np.iinfo(np.int64).max)
    np.minimum.at(first, inverse.reshape(-1)[channel], (place << 32) + column)
    order = np.argsort(np.argsort(first, kind="stable"))
    return np.asarray(order[inverse.reshape(-1)], dtype=np.int64)
