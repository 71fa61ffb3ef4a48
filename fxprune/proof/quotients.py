"""Quotients of the reference: removed slots that are no numbers are zero, as removed slots are.

Where the sum of a removed head, or the deviation of a removed channel, is a denominator, the reference divides zero by
zero. Such a slot is in no result of the small model. But the zero weight that reads it makes no zero of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxprune.channels.groups import Bools

QUOTIENTS = frozenset(
    {
        "aten::div",
        "aten::div_",
        "aten::reciprocal",
        "aten::reciprocal_",
        "aten::rsqrt",
        "aten::rsqrt_",
        "aten::pow",
        "aten::pow_",
    }
)
"""The operations that give no number for a denominator of zero."""


def settle(quotient: torch.Tensor, kept: Sequence[Bools | None]) -> bool:
    """Set the removed slots of a quotient to zero that are infinite or NaN, in place. Returns True if there are any.

    kept: for each dimension the flags of the kept slots, None where all are. A slot that is kept stays as it is.
    """
    if quotient.is_meta or quotient.layout is not torch.strided or all(flags is None for flags in kept):
        return False
    if not (quotient.is_floating_point() or quotient.is_complex()):
        return False
    removed = torch.zeros((1,) * quotient.ndim, dtype=torch.bool, device=quotient.device)
    for dim, flags in enumerate(kept):
        if flags is not None:
            shape = [1] * quotient.ndim
            shape[dim] = len(flags)
            removed = removed | ~torch.from_numpy(flags).to(quotient.device).reshape(shape)
    wrong = removed & ~quotient.isfinite()
    found = bool(wrong.any())
    if found:
        quotient.masked_fill_(wrong, 0)
    return found
