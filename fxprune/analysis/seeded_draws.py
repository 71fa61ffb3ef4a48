"""Random numbers that forward draws by a seed of its own: the same in each call, and others for other widths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from fxprune.ops import Call, Operand

WHY = "forward seeds these random numbers, which would be others for fewer channels"
_UNSEEDED = 0x66787072756E65  # a number that no code seeds with


@contextlib.contextmanager
def told_seeds() -> Iterator[None]:
    """Gives torch's generator a seed of its own for one run of forward, so that another seed is one of forward."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(_UNSEEDED)
    try:
        yield
    finally:
        torch.default_generator.set_state(before)


def lock_seeded_draws(call: Call, results: Sequence[Operand], seed: int) -> None:
    """Lock the dimensions of random numbers of a generator that forward has, or that it has seeded.

    seed: the seed of torch's generator before forward.
    """
    own = call.raw.get("generator") is not None
    if own or (torch.Tag.nondeterministic_seeded in call.func.tags and torch.initial_seed() != seed):
        for vector in (vector for result in results for vector in result.vectors):
            call.lock(vector, WHY)
