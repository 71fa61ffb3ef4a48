"""The difference of two nested values, as one number."""

from __future__ import annotations

import math
from typing import Any

import torch

from fxprune.capture.values import tensors_in


def relative_error(small: Any, reference: Any) -> float:
    """Returns max |small - reference| / max |reference|, the largest of all tensors in two nested values.

    Equal infinities at equal places are equal, and so are NaN at equal places; the maxima are taken over the finite
    numbers. Returns inf if the shapes differ, or if a number that is not finite has no equal one at its place.

    >>> relative_error(torch.tensor([1.0, -torch.inf]), torch.tensor([2.0, -torch.inf]))
    0.5
    """
    ours, theirs = tensors_in(small), tensors_in(reference)
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return math.inf
    return max((_error_of(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _error_of(small: torch.Tensor, reference: torch.Tensor) -> float:
    """The relative error of one tensor; never NaN."""
    a, b = _double_precision(small), _double_precision(reference)
    finite = torch.isfinite(b)
    if not bool(finite.all()):
        if not torch.equal(not_finite(a), not_finite(b)):
            return math.inf
        a, b = a[finite], b[finite]
    if not b.numel():
        return 0.0
    scale = float(b.abs().max())
    error = float((a - b).abs().max()) / (scale or 1.0)
    return error if math.isfinite(error) else math.inf


def _double_precision(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64; in complex128 if it is complex."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def not_finite(tensor: torch.Tensor) -> torch.Tensor:
    """Marks for each number: 0 if it is finite, 1 or -1 for an infinity, 2 for NaN."""
    parts = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return torch.where(parts.isnan(), 2.0, torch.where(parts.isinf(), parts.sign(), 0.0))
