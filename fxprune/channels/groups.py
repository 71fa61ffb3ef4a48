"""Channels and groups, the result of unification.

A *channel* is a class of free atoms together with all parameter slots that carry them: the smallest thing that can be
removed. Channels with the same footprint (equally many slots in the same dimensions of the same parameters) form a
*group* and are ranked against each other.

The data is stored in flat arrays with one entry per pair of a channel and a slot. No other file reads these arrays:
callers use the methods of `Solution` and `Removal`.
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
    """One dimension of one parameter or buffer: its vector, and the shape of the whole tensor."""

    parameter: str
    dim: int
    vector: Vector
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Entries:
    """The slots of every channel. Entry e: channel `channel[e]` has slot `slot[e]` in column `column[e]` of `place[e]`.

    A *place* is one vector together with all axes that share it. For example, the weight of a layer, its bias, the norm
    behind it and the next layer's weight share the vector of the layer's outputs. `axes_of[p]` lists the axes of place
    p, as positions in `Solution.axes`.
    """

    channel: Ints
    place: Ints
    column: Ints
    slot: Ints
    axes_of: list[list[int]]

    def __len__(self) -> int:
        return len(self.channel)


class PlaceSlots(NamedTuple):
    """The slots of some channels in one place: channel `channels[i]` has slot `slots[i]` in each of `axes`."""

    axes: list[int]
    channels: Ints
    slots: Ints


@dataclass(frozen=True, eq=False)
class Solution:
    """The channels that can be removed, and their groups.

    Channels are numbered from 0 in the order of their atoms; groups are numbered in the order of the first axis that
    they have slots in.

    Attributes:
        axes: the dimensions that take part. "The number of an axis" is its position here.
        roots: for each channel the atom that represents it.
        group: for each channel the number of its group.
        locks: triples of an event, the number of an axis, and how many of its slots the event locks.
    """

    terms: Terms
    axes: Sequence[Axis]
    entries: Entries
    roots: Ints
    group: Ints
    locks: Sequence[tuple[int, int, int]] = ()

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
        """A new array of flags, one per channel, all False."""
        return np.zeros(self.channels, dtype=bool)

    @cached_property
    def _by_group(self) -> list[Ints]:
        return _sorted_into(self.group, self.groups)

    def in_group(self, group: int) -> Ints:
        """The numbers of a group's channels, ascending."""
        return self._by_group[group]

    def group_of(self, channel: int) -> int:
        """The group of a channel."""
        return int(self.group[channel])

    def groups_of(self, channels: Ints) -> Ints:
        """The group of each of some channels."""
        return self.group[channels]

    def groups_with(self, flags: Bools) -> list[int]:
        """The numbers of the groups with at least one channel whose flag is set."""
        return [int(group) for group in np.unique(self.group[flags])]

    def groups_in(self, before: Solution) -> dict[int, int]:
        """Number of a group -> the number that it had before some channels were locked.

        before: the solution of the same terms without these locks.
        """
        old = dict(zip(before.roots.tolist(), before.group.tolist(), strict=True))
        firsts = ((group, int(self.roots[self.in_group(group)[0]])) for group in range(self.groups))
        return {group: old[root] for group, root in firsts if root in old}

    # -- channels and vectors -----------------------------------------------------------------------------

    def channels_of(self, vector: Vector) -> list[Ints]:
        """The channels of a vector's slots: one array per column, with the channel of each slot.

        -1 stands where the column has no channel at a slot. The list is empty for a vector without free atoms.
        """
        if vector.untouched:
            return []
        vector = vector.representative
        if vector not in self._channels_of:
            self._channels_of[vector] = [self._number[column] for column in self.terms.resolve(vector).columns]
        return self._channels_of[vector]

    @cached_property
    def _channels_of(self) -> dict[Vector, list[Ints]]:
        """The results of `channels_of`, by vector."""
        return {}

    @cached_property
    def _number(self) -> Ints:
        """For every atom that represents a channel the number of that channel, -1 for all other atoms."""
        table = np.full(self.terms.count, -1, dtype=np.int64)
        table[self.roots] = np.arange(len(self.roots))
        return table

    def channels_in(self, vectors: Iterable[Vector]) -> Bools:
        """Flags, one per channel: True if the channel has a slot in one of these vectors."""
        flags = self.no_channel()
        for vector in vectors:
            for channels in self.channels_of(vector):
                flags[channels[channels >= 0]] = True
        return flags

    def channels_among(self, vectors: Iterable[Vector]) -> Ints:
        """The numbers of the channels that have a slot in one of these vectors, ascending."""
        found = [channels for vector in vectors for channels in self.channels_of(vector)]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(c[c >= 0] for c in found)]))

    def can_shrink(self, vector: Vector) -> bool:
        """True if some slot of a vector can still be removed."""
        return not vector.untouched and len(self.terms.free(vector)) > 0

    def is_grid(self, vector: Vector) -> bool:
        """True if a slot of a vector can belong to several channels, such as a head and a position inside the heads."""
        return not vector.untouched and len(self.terms.resolve(vector).columns) > 1

    # -- channels and axes --------------------------------------------------------------------------------

    def members(self, group: int) -> list[tuple[Axis, Ints, Ints]]:
        """The axes in which a group has slots, in the order of `axes`.

        Returns triples: the axis; the channel of each slot, counted within the group; the slots, of the same length.
        """
        found: dict[int, tuple[Axis, Ints, Ints]] = {}
        own = self.in_group(group)
        for axes, channels, slots in self._entries_by_place(self._entries_by_group[group]):
            index = np.searchsorted(own, channels)
            found.update((number, (self.axes[number], index, slots)) for number in axes)
        return [found[number] for number in sorted(found)]

    @cached_property
    def _entries_by_group(self) -> list[Ints]:
        return _sorted_into(self.group[self.entries.channel], self.groups)

    @cached_property
    def shrinkable_axes(self) -> set[int]:
        """The numbers of the axes in which some channel has slots."""
        return {number for place in np.unique(self.entries.place) for number in self.entries.axes_of[place]}

    def slots_by_place(self, chosen: Bools) -> Iterator[PlaceSlots]:
        """The slots of the chosen channels, place by place. `chosen` has a flag per channel."""
        return self._entries_by_place(np.flatnonzero(chosen[self.entries.channel]))

    def _entries_by_place(self, chosen: Ints) -> Iterator[PlaceSlots]:
        """The same for entries, by their positions in the arrays."""
        if not len(chosen):
            return
        entries = self.entries
        chosen = chosen[np.argsort(entries.place[chosen], kind="stable")]
        for run in np.split(chosen, np.flatnonzero(np.diff(entries.place[chosen])) + 1):
            yield PlaceSlots(entries.axes_of[entries.place[run[0]]], entries.channel[run], entries.slot[run])

    def slots_of(self, chosen: Bools) -> list[tuple[Axis, list[int]]]:
        """The slots that disappear with the chosen channels: for each axis that loses some, the sorted slots.

        In the order of `axes`; `chosen` has a flag per channel.
        """
        found: dict[int, list[int]] = {}
        for axes, _, slots in self.slots_by_place(chosen):
            found.update(dict.fromkeys(axes, np.unique(slots).tolist()))
        return [(self.axes[number], found[number]) for number in sorted(found)]

    def channels_within(self, slots: Sequence[Bools]) -> Bools:
        """Flags, one per channel: True if all its slots are among the given ones.

        slots: for every axis, in the order of `axes`, a flag per slot.
        """
        inside = np.ones(self.channels, dtype=bool)
        for axes, channels, taken in self._entries_by_place(np.arange(len(self.entries))):
            everywhere = np.all([slots[number] for number in axes], axis=0)
            inside[channels[~everywhere[taken]]] = False
        return inside

    def sum_over_slots(self, values: Mapping[int, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """For each channel the sum of the values at its slots.

        values: number of an axis -> one value per slot of it. Axes that are missing there add nothing.
        """
        totals = np.zeros(self.channels)
        for axes, channels, slots in self._entries_by_place(np.arange(len(self.entries))):
            by_slot = np.zeros(self.axes[axes[0]].vector.size)
            for number in axes:
                if number in values:
                    by_slot += values[number]
            np.add.at(totals, channels, by_slot[slots])
        return totals

    # -- locked slots -------------------------------------------------------------------------------------

    def locked_slots(self) -> Iterator[tuple[int, Axis, int]]:
        """Every lock as a triple: the event, the axis, and how many of its slots are locked by it.

        A slot that also has a free atom does not count: it can be removed with that atom.
        """
        return ((event, self.axes[number], count) for event, number, count in self.locks)

    def locked_slots_in(self, vector: Vector) -> dict[int, int]:
        """Event -> how many slots of a vector it locks. A slot that also has a free atom does not count."""
        if vector.fixed or vector.untouched:
            return {}
        atoms, _, _, slot = expanded(self.terms, [vector])
        events = self.terms.event(atoms)
        stuck = (events > 1) & ~np.isin(slot, slot[events == 0])
        once = np.unique(np.stack([events[stuck], slot[stuck]]), axis=1)
        numbers, counts = np.unique(once[0], return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _sorted_into(keys: Ints, size: int) -> list[Ints]:
    """For each key from 0 to size - 1 the positions where `keys` has it, ascending."""
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.cumsum(np.bincount(keys, minlength=size))[:-1]) if len(order) else []


def expanded(terms: Terms, vectors: Sequence[Vector]) -> tuple[Ints, Ints, Ints, Ints]:
    """The unbound atoms of all slots of the vectors, as four arrays of one length.

    Returns, for each of them, the atom; the position of its vector in `vectors`; the number of its column (see
    `AtomTable.expand`); its slot.
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
    """A choice of channels to remove, and the slots that every vector keeps then.

    removed: a flag per channel, True = remove. They stay as they are while the removal is in use.

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
        self._known: dict[Vector, tuple[Bools | None, int]] = {}

    def kept(self, vector: Vector) -> Bools | None:
        """A flag per slot of a vector, True = the slot stays; None if all stay."""
        return self._look_up(vector)[0]

    def count(self, vector: Vector) -> int:
        """The number of a vector's slots that stay."""
        return self._look_up(vector)[1]

    def _look_up(self, vector: Vector) -> tuple[Bools | None, int]:
        vector = vector.representative
        if vector.fixed or vector.untouched:
            return None, vector.size
        known = self._known.get(vector)
        if known is None:
            lost = np.zeros(vector.size, dtype=bool)
            for channels in self.solution.channels_of(vector):
                lost |= self.removed[channels] & (channels >= 0)
            count = int(np.count_nonzero(lost))
            known = self._known[vector] = (~lost if count else None, vector.size - count)
        return known

    def shape(self, vectors: Sequence[Vector]) -> tuple[int, ...]:
        """The size of each of these dimensions after the removal."""
        return tuple(self.count(v) for v in vectors)
