"""The numbers of integer inputs, for lookups in a table: a lookup raises for some numbers alone.

A fake tensor knows no numbers. That of an integer input remembers the input, and a view of it that of the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch

_NAME = "_fxprune_example"


class OutOfRangeError(IndexError):
    """An example input has a number that a table has no row for."""


def by_numbers(error: Exception) -> bool:
    """True for the error of a run that ended so: the model raises on these inputs wherever it runs."""
    return isinstance(error.__cause__, OutOfRangeError)


def remember(fake: torch.Tensor, real: Any) -> None:
    """Note that a fake tensor stands for an example input, if it has integers that can be looked at."""
    plain = type(real) is torch.Tensor and real.layout is torch.strided and real.device.type != "meta"
    integer = plain and real.dtype in (torch.int64, torch.int32)
    if integer and isinstance(fake, FakeTensor) and not fake.is_inference():
        setattr(fake, _NAME, (real, fake._version))


def follow(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
    """Note that a view of a tensor that stands for an example input stands for the same view of the input."""
    known = getattr(args[0], _NAME, None)
    if known is not None and isinstance(made, torch.Tensor) and (real := _unchanged(args[0])) is not None:
        with no_dispatch():
            remember(made, func(real, *args[1:], **kwargs))


def check_lookup(weight: torch.Tensor, positions: torch.Tensor) -> None:
    """Raises `OutOfRangeError` where an example input has numbers that are no rows of a table."""
    real, rows = _unchanged(positions), weight.shape[0]
    if real is None or not real.numel():
        return
    with no_dispatch():
        low, high = int(real.min()), int(real.max())
    if low < 0 or high >= rows:
        worst = high if high >= rows else low
        raise OutOfRangeError(
            f"index out of range in self: {worst} is in the inputs, the table has rows 0 to {rows - 1}"
        )


def _unchanged(fake: torch.Tensor) -> torch.Tensor | None:
    """The example input that a fake tensor stands for; None if it was written to, or stands for none."""
    real, version = getattr(fake, _NAME, (None, 0))
    return None if real is None or fake._version != version else real
