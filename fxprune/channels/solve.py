"""Reads channels and groups off unified terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxprune.channels.groups import Axis, Entries, Ints, Solution, expanded
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector


def solve(terms: Terms, axes: Sequence[Axis]) -> Solution:
    """Find the channels of the given axes and sort them into groups.

    Axes with the same vector are treated as one place. All work is done on whole arrays; no loop runs over channels.
    """
    by_vector: dict[Vector, list[int]] = {}
    for number, axis in enumerate(axes):
        by_vector.setdefault(axis.vector.representative, []).append(number)
    axes_of = list(by_vector.values())
    atoms, place, column, slot = expanded(terms, list(by_vector))
    events = terms.event(atoms)
    locks = _locks(events, place, slot)
    free = events == 0
    atoms, place, column, slot = atoms[free], place[free], column[free], slot[free]
    present = np.zeros(terms.count, dtype=bool)
    present[atoms] = True
    roots, channel = np.flatnonzero(present), (np.cumsum(present) - 1)[atoms]
    return Solution(
        terms,
        axes,
        Entries(channel, place, column, slot, axes_of),
        roots,
        _footprints(channel, place, column, len(roots)),
        [(event, number, count) for event, at, count in locks for number in axes_of[at]],
    )


def _locks(events: Ints, place: Ints, slot: Ints) -> list[tuple[int, int, int]]:
    """Triples of an event, a place, and how many of its slots the event locks.

    Event 1 is left out: it locks dimensions that are never channels, such as the height of a kernel. A slot that also
    has a free atom does not count: it can be removed with that atom.
    """
    locked = events > 1
    places = np.bincount(place[locked], minlength=int(place.max(initial=0)) + 1) > 0
    near = np.flatnonzero(places[place])  # most places have no lock at all
    events, place, slot = events[near], place[near], slot[near]
    at, stuck = (place << 32) + slot, events > 1
    stuck[stuck] = ~np.isin(at[stuck], at[events == 0])
    keys, counts = np.unique(np.stack([events[stuck], place[stuck]]), axis=1, return_counts=True)
    return [(int(e), int(p), int(n)) for e, p, n in zip(keys[0], keys[1], counts, strict=True)]


def _footprints(channel: Ints, place: Ints, column: Ints, channels: int) -> Ints:
    """The number of each channel's group, from three arrays with one value per entry.

    The footprint of a channel is the multiset of its (place, column) pairs; channels with equal footprints are one
    group. Groups are numbered by the smallest pair that they contain. Footprints are compared by the sum of the 64-bit
    hashes (splitmix64) of their pairs, modulo 2^64.
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
