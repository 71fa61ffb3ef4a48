"""Locks that a reader cannot tell apart, as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable

from fxprune.report.data import HeldData, LockedData


def merged_locks(locks: Iterable[LockedData], shown: Callable[[LockedData], Hashable]) -> list[tuple[LockedData, int]]:
    """One lock for all of which the same is shown, and how many they are; it stands where the first of them stood.

    It holds what they hold, and its figures are their sums. shown: what a reader sees of a lock.
    """
    found: dict[Hashable, list[LockedData]] = {}
    for lock in locks:
        found.setdefault(shown(lock), []).append(lock)
    return [(_one(alike), len(alike)) for alike in found.values()]


def _one(alike: list[LockedData]) -> LockedData:
    first, *more = alike
    if not more:
        return first
    slots: dict[tuple[str, int], int] = {}
    for held in (held for lock in alike for held in lock.holds):
        slots[held.parameter, held.dim] = slots.get((held.parameter, held.dim), 0) + held.slots
    macs = [lock.macs for lock in alike if lock.macs is not None]
    return dataclasses.replace(
        first,
        params=sum(lock.params for lock in alike),
        macs=sum(macs) if len(macs) == len(alike) else None,
        holds=tuple(HeldData(parameter, dim, count) for (parameter, dim), count in slots.items()),
    )
