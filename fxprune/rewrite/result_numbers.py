"""Plain numbers in the result of a forward that are computed from a width: others in the small model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from fxprune.capture.output_paths import OutputPath, parts_of, path_text

_NUMBERS = (bool, int, float, complex)


def other_numbers(before: Any, after: Any, path: OutputPath = ()) -> Iterator[tuple[OutputPath, Any, Any]]:
    """The numbers in a result that are others than before, each with its path and both numbers.

    before: the result of the original, with anything in place of tensors.

    >>> list(other_numbers({"w": [16, 3]}, {"w": [8, 3]}))
    [(('w', 0), 16, 8)]
    """
    if isinstance(after, _NUMBERS):
        if isinstance(before, _NUMBERS) and before != after and not (_is_nan(before) and _is_nan(after)):
            yield path, before, after
        return
    parts = _parts(after)
    old = None if parts is None else _parts(before)
    if parts is None or old is None or len(parts) != len(old):
        return
    for (key, part), was in zip(parts.items(), old.values(), strict=True):
        yield from other_numbers(was, part, (*path, key))


def number_note(path: OutputPath, before: Any, after: Any) -> str:
    """The reason for the record about a number in the result."""
    at = f"at {path_text(path)}" if path else "itself"
    return f"the result {at} is a number computed from a width: {_text(after)}, {_text(before)} in the original"


def _text(number: Any) -> str:
    return str(number) if isinstance(number, int) else f"{number:.6g}"


def _is_nan(number: Any) -> bool:
    return isinstance(number, float) and math.isnan(number)


def _parts(value: Any) -> dict[Any, Any] | None:
    """Key -> part of a container, of a size as well; None for a leaf."""
    return dict(enumerate(value)) if isinstance(value, torch.Size) else parts_of(value)
