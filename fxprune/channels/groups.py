"""Channels and groups: what remains after unification.

A *channel* is a class of atoms with every parameter slot that goes with it: the smallest thing that can be
removed. Channels with the same footprint (the same dimensions of the same parameters, as often) form a *group*
and compete with each other.

Everything is kept in flat arrays, one entry per (channel, slot) pair; objects are made when they are asked for. Nothing
outside this file reads the arrays: callers ask a `Solution`, or a `Removal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

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


@dataclass(frozen=True, eq=False)
class Entries:
    """Entry e says that channel `channel[e]` has slot `slot[e]` of place `place[e]`, in column `column[e]` there.

    A *place* is a vector with all the axes that have it: a layer's output stands in its weight, its bias, the norm
    after it and the input of the next layer, and is looked at once. `axes_of[p]` lists the numbers of the axes of
    place p.
    """

    channel: Ints
    place: Ints
    column: Ints
    slot: Ints
    axes_of: list[list[int]]

    def __len__(self) -> int:
        return len(self.channel)


class Stand(NamedTuple):
    """The slots of some channels in one vector: channel `channels[i]` has slot `slots[i]` of each of these axes."""

    axes: list[int]
    channels: Ints
    slots: Ints


@dataclass(frozen=True, eq=False)
class Solution:
    """The free channels, numbered 0, 1, ... in the order of their atoms, and their groups, by their first parameters.

    roots: the atom that represents each channel. group: the group of each channel.
    held: (event, number of the axis, how many of its slots the event locks).
    """

    terms: Terms
    axes: Sequence[Axis]
    entries: Entries
    roots: Ints
    group: Ints
    held: Sequence[tuple[int, int, int]] = ()

    # -- channels and groups ------------------------------------------------------------------------------

    @property
    def channels(self) -> int:
        """The number of free channels."""
        return len(self.roots)

    @property
    def groups(self) -> int:
        """The number of groups."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    def no_channel(self) -> Bools:
        """A flag per channel, none of them set."""
        return np.zeros(self.channels, dtype=bool)

    @cached_property
    def _by_group(self) -> list[Ints]:
        return _sorted_into(self.group, self.groups)

    def in_group(self, group: int) -> Ints:
        """The channels of a group, ascending."""
        return self._by_group[group]

    def group_of(self, channel: int) -> int:
        """The group of a channel."""
        return int(self.group[channel])

    def groups_with(self, flags: Bools) -> list[int]:
        """The groups that have one of the channels with a flag."""
        return [int(group) for group in np.unique(self.group[flags])]

    # -- channels and vectors -----------------------------------------------------------------------------

    def channels_of(self, vector: Vector) -> list[Ints]:
        """Per column the channel of every slot, -1 where the column has none."""
        if vector.untouched:
            return []
        return [self._number[column] for column in self.terms.resolve(vector).columns]

    @cached_property
    def _number(self) -> Ints:
        """The channel of each atom's root, -1 for none."""
        table = np.full(self.terms.count, -1, dtype=np.int64)
        table[self.roots] = np.arange(len(self.roots))
        return table

    def standing_in(self, vectors: Iterable[Vector]) -> Bools:
        """A flag per channel: it has a slot in one of these vectors."""
        flags = self.no_channel()
        for vector in vectors:
            for channels in self.channels_of(vector):
                flags[channels[channels >= 0]] = True
        return flags

    def can_shrink(self, vector: Vector) -> bool:
        """True if some slot of a vector can still be removed."""
        return not vector.untouched and len(self.terms.free(vector)) > 0

    def is_grid(self, vector: Vector) -> bool:
        """True if slots of a vector go with several channels: it has rows and columns, heads and their widths."""
        return not vector.untouched and len(self.terms.resolve(vector).columns) > 1

    # -- channels and axes --------------------------------------------------------------------------------

    def members(self, group: int) -> list[tuple[Axis, Ints, Ints]]:
        """Every axis that a group stands in; for each of its slots the channel, counted within the group, and the slot.

        In the order of `axes`.
        """
        found: dict[int, tuple[Axis, Ints, Ints]] = {}
        own = self.in_group(group)
        for axes, channels, slots in self._stands(self._entries_by_group[group]):
            index = np.searchsorted(own, channels)
            found.update((number, (self.axes[number], index, slots)) for number in axes)
        return [found[number] for number in sorted(found)]

    @cached_property
    def _entries_by_group(self) -> list[Ints]:
        return _sorted_into(self.group[self.entries.channel], self.groups)

    @cached_property
    def shrinking(self) -> set[int]:
        """The numbers of the axes in which some channel stands."""
        return {number for place in np.unique(self.entries.place) for number in self.entries.axes_of[place]}

    def stands(self, chosen: Bools) -> Iterator[Stand]:
        """The places of the chosen channels, by vector: the axes that have it, the channels and their slots."""
        return self._stands(np.flatnonzero(chosen[self.entries.channel]))

    def _stands(self, chosen: Ints) -> Iterator[Stand]:
        """The same of chosen entries."""
        if not len(chosen):
            return
        entries = self.entries
        chosen = chosen[np.argsort(entries.place[chosen], kind="stable")]
        for run in np.split(chosen, np.flatnonzero(np.diff(entries.place[chosen])) + 1):
            yield Stand(entries.axes_of[entries.place[run[0]]], entries.channel[run], entries.slot[run])

    def slots_of(self, chosen: Bools) -> list[tuple[Axis, list[int]]]:
        """Every axis that loses slots when the chosen channels go, and those slots; in the order of `axes`."""
        found: dict[int, list[int]] = {}
        for axes, _, slots in self.stands(chosen):
            found.update(dict.fromkeys(axes, np.unique(slots).tolist()))
        return [(self.axes[number], found[number]) for number in sorted(found)]

    def channels_within(self, slots: Sequence[Bools]) -> Bools:
        """The channels all of whose slots are among those given, one flag for every slot of every axis."""
        inside = np.ones(self.channels, dtype=bool)
        for axes, channels, taken in self._stands(np.arange(len(self.entries))):
            everywhere = np.all([slots[number] for number in axes], axis=0)
            inside[channels[~everywhere[taken]]] = False
        return inside

    def sum_over_slots(self, values: Mapping[int, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """Per channel the sum over its slots, of `values[number]` [slots of that axis]; other axes add nothing."""
        totals = np.zeros(self.channels)
        for axes, channels, slots in self._stands(np.arange(len(self.entries))):
            by_slot = np.zeros(self.axes[axes[0]].vector.size)
            for number in axes:
                if number in values:
                    by_slot += values[number]
            np.add.at(totals, channels, by_slot[slots])
        return totals

    # -- what is locked -----------------------------------------------------------------------------------

    def held_slots(self) -> Iterator[tuple[int, Axis, int]]:
        """Every lock as event, axis and number of slots; slots with a free atom are left out."""
        return ((event, self.axes[number], count) for event, number, count in self.held)

    def held_in(self, vector: Vector) -> dict[int, int]:
        """The number of slots of any vector that each event locks; a slot with a free atom is locked by none."""
        if vector.fixed or vector.untouched:
            return {}
        atoms, _, _, slot = expanded(self.terms, [vector])
        events = self.terms.event(atoms)
        stuck = (events > 1) & ~np.isin(slot, slot[events == 0])
        once = np.unique(np.stack([events[stuck], slot[stuck]]), axis=1)
        numbers, counts = np.unique(once[0], return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _sorted_into(keys: Ints, size: int) -> list[Ints]:
    """The positions of each key 0 .. size - 1, ascending."""
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.cumsum(np.bincount(keys, minlength=size))[:-1]) if len(order) else []


def expanded(terms: Terms, vectors: Sequence[Vector]) -> tuple[Ints, Ints, Ints, Ints]:
    """Every atom that vectors stand for, the number of its vector, its column and its slot there.

    Columns are numbered from 1; an atom that is bound to two others leaves its column to them as two columns.
    """
    parts = [(number, k, column) for number, v in enumerate(vectors) for k, column in enumerate(v.columns, start=1)]
    if not parts:
        return (np.zeros(0, dtype=np.int64),) * 4
    numbers, columns, atoms = zip(*parts, strict=True)
    sizes = [len(column) for column in atoms]
    found, entry, column = terms.expand_all(np.concatenate(atoms), np.repeat(np.array(columns), sizes))
    slots = np.concatenate([np.arange(size) for size in sizes])
    return found, np.repeat(np.array(numbers), sizes)[entry], column, slots[entry]


class Removal:
    """Channels that are removed, and what every vector keeps then.

    >>> from fxprune.channels.solve import solve
    >>> terms = Terms()
    >>> rows, columns = terms.fresh(2), terms.fresh(3)
    >>> grid = terms.merge([rows, columns])
    >>> solution = solve(terms, [Axis("weight", 0, rows, (2, 3)), Axis("weight", 1, columns, (2, 3))])
    >>> removal = Removal(solution, np.array([True, False, False, False, False]))  # the first row
    >>> removal.count(rows), removal.count(columns), removal.kept(grid).tolist()
    (1, 3, [False, False, False, True, True, True])
    """

    def __init__(self, solution: Solution, removed: Bools) -> None:
        self.solution = solution
        self.removed = removed
        self._atoms = np.zeros(solution.terms.count, dtype=bool)
        self._atoms[solution.roots[removed]] = True
        self._known: dict[Vector, tuple[Bools | None, int]] = {}

    def kept(self, vector: Vector) -> Bools | None:
        """The slots that stay, as flags; None where all do."""
        return self._look_up(vector)[0]

    def count(self, vector: Vector) -> int:
        """The number of slots that stay."""
        return self._look_up(vector)[1]

    def _look_up(self, vector: Vector) -> tuple[Bools | None, int]:
        vector = vector.representative
        if vector.fixed or vector.untouched:
            return None, vector.size
        known = self._known.get(vector)
        if known is None:
            gone = np.zeros(vector.size, dtype=bool)
            for column in self.solution.terms.resolve(vector).columns:
                gone |= self._atoms[column]
            lost = int(np.count_nonzero(gone))
            known = self._known[vector] = (~gone if lost else None, vector.size - lost)
        return known

    def shape(self, vectors: Sequence[Vector]) -> tuple[int, ...]:
        """The new size of each dimension."""
        return tuple(self.count(v) for v in vectors)
