"""Seeds that users give: generators of random numbers with them, and errors for what is none."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.arguments import fits, shown
from fxprune.errors import InputError, PlanError


def generator_of(seed: int) -> torch.Generator:
    """A generator of random numbers with this seed. Raises `InputError` for a seed that torch does not take."""
    try:
        return torch.Generator().manual_seed(seed)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"seed is {shown(seed)}", why=f"torch does not take it: {error}", do="pass 0, 1, 2, ..."
        ) from None


def check_seed(seed: Any) -> None:
    """Raises `PlanError` for what is neither an integer of at least 0 nor None."""
    if seed is not None and not (fits(seed, int) and seed >= 0):
        raise PlanError(
            "seed must be an integer of at least 0, or None", why=f"it is {shown(seed)}", do="pass 0, 1, 2, ..."
        )
