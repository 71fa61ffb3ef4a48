"""Widths that are possible together: more channels stay until a config with these widths is accepted.

A class of configs may accept some widths alone, such as a hidden size that is a multiple of the number of heads.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

MOST_TRIES = 4000
"""The most widths that are tried."""

StepsKept = Mapping[int, int]
"""Number of a set of groups -> how many steps it keeps."""


def nearest_accepted(kept: StepsKept, most: StepsKept, accepts: Callable[[StepsKept], bool]) -> StepsKept | None:
    """The widths that are accepted, and keep the smallest shares more; None if none are found.

    most: the steps that each set has, which are accepted. Sets that do not matter keep what they have.
    """
    if accepts(kept):
        return kept
    able = [number for number in kept if kept[number] < most[number]]
    for size in (1, 2, 3):
        for chosen in combinations(able, size):
            if accepts({**kept, **{number: most[number] for number in chosen}}):
                return _nearest(chosen, kept, most, accepts)
    return None


def _nearest(
    chosen: Sequence[int], kept: StepsKept, most: StepsKept, accepts: Callable[[StepsKept], bool]
) -> StepsKept:
    """The accepted widths where only the chosen sets keep more."""
    start = tuple(kept[number] for number in chosen)
    waiting, seen = [(0.0, start)], {start}
    for _ in range(MOST_TRIES):
        if not waiting:
            break
        _, steps = heapq.heappop(waiting)
        widths = {**kept, **dict(zip(chosen, steps, strict=True))}
        if accepts(widths):
            return widths
        for position, number in enumerate(chosen):
            more = (*steps[:position], steps[position] + 1, *steps[position + 1 :])
            if more[position] <= most[number] and more not in seen:
                seen.add(more)
                pairs = zip(chosen, more, start, strict=True)
                heapq.heappush(waiting, (sum((now - then) / most[n] for n, now, then in pairs), more))
    return {**kept, **{number: most[number] for number in chosen}}
