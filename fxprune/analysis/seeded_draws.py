"""Random numbers that forward draws by a seed of its own: the same in each call, and others for other widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.capture.scopes import Key
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.ops import Call, Operand

WHY = "forward seeds these random numbers, which would be others for fewer channels"


def own_seed(func: Any, raw: Mapping[str, Any], told: int) -> int | None:
    """The seed of the numbers that an operation draws, if forward has the generator, or has seeded torch's; else None.

    told: the seed of torch's generator before forward.
    """
    generator = raw.get("generator")
    if generator is not None:
        return int(generator.initial_seed())
    seed = torch.initial_seed() if torch.Tag.nondeterministic_seeded in func.tags else told
    return None if seed == told else seed


def lock_seeded_draws(call: Call, results: Sequence[Operand], told: int) -> None:
    """Lock the dimensions of random numbers of a generator that forward has, or that it has seeded. told: see there."""
    if own_seed(call.func, call.raw, told) is not None:
        for vector in (vector for result in results for vector in result.vectors):
            call.lock(vector, WHY)


@dataclass(frozen=True, eq=False)
class OtherSeed:
    """An operation that draws by another seed in the small model than in the original, since it is made of a width.

    widths: the dimensions whose removed slots explain the difference; none if the cause is unknown.
    """

    key: Key
    before: int
    after: int
    widths: tuple[Vector, ...]

    def __str__(self) -> str:
        return f"{self.key[2]} draws by the seed {self.after}, which was {self.before} before slots went"


def other_seed(key: Key, before: int, after: int, widths: Iterable[Vector], removal: Removal) -> OtherSeed | None:
    """The difference between two seeds, None without one.

    Its widths are those of which a multiple, or a sum with one, explains it; none where the difference has another
    cause: another formula, or the clock.
    """
    if before == after:
        return None
    found = []
    for vector in widths:
        size, count = vector.size, removal.count(vector)
        multiple = before % max(size, 1) == 0 and before * count == after * size
        if size != count and (multiple or before - after == size - count):
            found.append(vector)
    found = [vector for vector in found if vector.size == before] or found
    return OtherSeed(key, before, after, tuple(found))
