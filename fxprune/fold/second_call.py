"""The readings of a second call: what an earlier call has left in the state of a model is no constant.

Such readings only hold channels: a constant that they read must be the same one as in the first call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from fxprune.channels.groups import Bools
from fxprune.fold.reading import ProductReading, Reading

ROUNDING = 1e-12
"""Two constants that differ by less, relative to the largest, are the same."""


def holding(first: Sequence[Reading], second: Sequence[Reading]) -> list[Reading]:
    """A reading that holds slots, for each reading of the second call with slots that are other ones than before.

    These are the slots that depend on the input or on the first call, and constants with another value.
    """
    before = dict(zip(_places(first), first, strict=True))
    found = []
    for place, reading in zip(_places(second), second, strict=True):
        bad = reading.bad | _moved(before.get(place), reading)
        if bad.any():
            found.append(Reading(reading.at, "a second call reads something else there", reading.vector, bad))
    return found


def _places(readings: Sequence[Reading]) -> list[tuple[str, int, int]]:
    """The place and the dimension of each reading, and how many of them there were before."""
    seen: Counter[tuple[str, int]] = Counter()
    made = []
    for reading in readings:
        key = reading.at, id(reading.vector.representative)
        seen[key] += 1
        made.append((*key, seen[key]))
    return made


def _moved(first: Reading | None, second: Reading) -> Bools:
    """Flags of the slots whose constants are others in the second reading of a product."""
    flags = np.zeros(second.vector.size, dtype=bool)
    if not isinstance(second, ProductReading):
        return flags
    now = _by_slot(second)
    before = _by_slot(first) if isinstance(first, ProductReading) else {}
    largest = max((float(plane.abs().max()) for plane in (*now.values(), *before.values())), default=0.0)
    for slot in now.keys() | before.keys():
        a, b = now.get(slot, torch.zeros(1)), before.get(slot, torch.zeros(1))
        if a.numel() != b.numel() and min(a.numel(), b.numel()) > 1:
            flags[slot] = True
        else:
            flags[slot] = float((a - b.to(a)).abs().max()) > ROUNDING * largest
    return flags


def _by_slot(reading: ProductReading) -> dict[int, torch.Tensor]:
    return dict(zip(reading.constants.slots.tolist(), reading.constants.planes, strict=True))
