"""The error of a model's outputs against those of another model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from fxprune._repair.products import double
from fxprune.capture.values import tensors_in
from fxprune.errors import InputError


def relative_squared_error(pairs: Iterable[tuple[Any, Any]]) -> float:
    """The mean over samples and tensors of |ours - theirs|^2 / |theirs|^2.

    A sample is an entry of the first dimension of a tensor. Tensors of integers do not count, nor those whose shapes
    differ. Raises `InputError` if an output is not finite.

    >>> relative_squared_error([(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 3.0]]))])
    0.4
    """
    errors = []
    for ours, theirs in pairs:
        for a, b in zip(tensors_in(ours), tensors_in(theirs), strict=False):
            if a.shape != b.shape or not b.is_floating_point() or not b.numel():
                continue
            first, second = double(a).flatten(1 if a.ndim > 1 else 0), double(b).flatten(1 if b.ndim > 1 else 0)
            size = second.square().sum(-1)
            errors.append((first - second).square().sum(-1) / torch.where(size > 0, size, 1.0))
    if not errors:
        return 0.0
    mean = float(torch.cat([error.flatten() for error in errors]).mean())
    if not math.isfinite(mean):
        raise InputError(
            "an output of the model is not finite",
            why="results with NaN or infinities cannot be compared",
            do="leave out the batch that causes it",
        )
    return mean
