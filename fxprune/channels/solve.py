"""Channels and groups, read off the unified terms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxprune.channels.groups import Axis, Entries, Ints, Solution, expanded
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector


def solve(terms: Terms, axes: Sequence[Axis]) -> Solution:
    """Read channels and groups off the unified terms. All in bulk: counting and hashing, no loop over channels."""
    by_vector: dict[Vector, list[int]] = {}
    for number, axis in enumerate(axes):
        by_vector.setdefault(axis.vector.representative, []).append(number)
    axes_of = list(by_vector.values())
    atoms, place, column, slot = expanded(terms, list(by_vector))
    events = terms.event(atoms)
    held = _held(events, place, slot)
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
        [(event, number, count) for event, at, count in held for number in axes_of[at]],
    )


def _held(events: Ints, place: Ints, slot: Ints) -> list[tuple[int, int, int]]:
    """Every lock as event, place and number of slots; dimensions that are no channels are left out.

    A slot with a locked atom and a free one is not held: it can go with the free one.
    """
    at = (place << 32) + slot
    stuck = (events > 1) & ~np.isin(at, at[events == 0])
    keys, counts = np.unique(np.stack([events[stuck], place[stuck]]), axis=1, return_counts=True)
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
