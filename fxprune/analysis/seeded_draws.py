"""Random numbers that forward draws by a seed of its own: the same in each call, and others for other widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxprune.ops import Call, Operand

WHY = "forward seeds these random numbers, which would be others for fewer channels"


def lock_seeded_draws(call: Call, results: Sequence[Operand], seed: int) -> None:
    """Lock the dimensions of random numbers of a generator that forward has, or that it has seeded.

    seed: the seed of torch's generator before forward.
    """
    own = call.raw.get("generator") is not None
    if own or (torch.Tag.nondeterministic_seeded in call.func.tags and torch.initial_seed() != seed):
        for vector in (vector for result in results for vector in result.vectors):
            call.lock(vector, WHY)
