"""The error of a model's outputs against those of another model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fxprune.capture.values import tensors_in
from fxprune.errors import InputError
from fxprune.running.products import double

LEAST = 0.1
"""The least |theirs|^2 that a sample's error is divided by, as a share of the mean over the samples of its batch."""


def relative_squared_error(pairs: Iterable[tuple[Any, Any]]) -> float:
    """The mean over samples and tensors of |ours - theirs|^2 / |theirs|^2.

    A sample is an entry of the first dimension of a tensor. One whose |theirs|^2 is below a tenth of the mean of its
    batch is divided by that tenth: else a sample with outputs near zero would count more than all others.

    Tensors of integers do not count, nor those whose shapes differ, nor numbers that are the same infinity in both.
    Raises `InputError` if another output is not finite, and if nothing counts.

    >>> relative_squared_error([(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 3.0]]))])
    0.4
    >>> relative_squared_error([(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [0.0]]))])
    10.0
    """
    total, count = squared_errors(pairs)
    if not count:
        raise InputError(
            "the outputs of the two models cannot be compared",
            why="none of them holds fractions, in the same shape in both",
            do="repair the part of the model that gives fractions, such as the scores before the choice of the best",
        )
    return total / count


def squared_errors(pairs: Iterable[tuple[Any, Any]]) -> tuple[float, int]:
    """The sum whose mean is `relative_squared_error`, and the number of its terms."""
    errors = sample_errors(pairs)
    if not errors:
        return 0.0, 0
    listed = torch.cat([error.flatten() for error in errors])
    total = float(listed.sum())
    if not math.isfinite(total):
        raise InputError(
            "an output of the model is not finite",
            why="results with NaN or infinities cannot be compared",
            do="leave out the batch that causes it",
        )
    return total, len(listed)


def sample_errors(pairs: Iterable[tuple[Any, Any]]) -> list[Tensor]:
    """The relative squared errors of the samples, for each tensor that counts."""
    errors: list[Tensor] = []
    for ours, theirs in pairs:
        for a, b in zip(tensors_in(ours), tensors_in(theirs), strict=False):
            if a.shape == b.shape and (b.is_floating_point() or b.is_complex()) and b.numel():
                errors.append(_errors(_plain(a), _plain(b)))
    return errors


def _errors(ours: Tensor, theirs: Tensor) -> Tensor:
    """The relative squared error of each sample."""
    same = ours == theirs.to(ours.device)
    first, second = (torch.where(same & one.isinf(), 0.0, one) for one in (ours, theirs.to(ours.device)))
    first, second = (one.flatten(1 if one.ndim > 1 else 0) for one in (first, second))
    size = second.square().sum(-1)
    size = size.clamp_min(LEAST * size.mean())
    return (first - second).square().sum(-1) / torch.where(size > 0, size, 1.0)


def _plain(tensor: Tensor) -> Tensor:
    return double(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
