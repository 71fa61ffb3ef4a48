"""Factors of a movement that only puts elements into another order or shape, dimension by dimension.

A factor has size 1 in every dimension along which it does not change, and keeps it here. So an attention with thousands
of tokens costs no more than one with a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch

VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten", "unflatten"}
"""Operations that give the elements another shape, in the same order."""


def reshaped_factor(factor: torch.Tensor, after: Sequence[int], before: Sequence[int]) -> torch.Tensor:
    """The factor of a tensor of the shape `before`, from that of the same elements in the shape `after`.

    >>> reshaped_factor(torch.tensor([[[2.0], [3.0]]]), (4, 2, 5), (4, 10)).shape
    torch.Size([1, 10])
    """
    wide, narrow = [1] * len(after), [1] * len(before)
    ends = sorted({*accumulate(after, mul)} & {*accumulate(before, mul)})
    start = (0, 0)
    for end in ends:
        stop = _stop(after, end), _stop(before, end)
        if any(size > 1 for size in factor.shape[start[0] : stop[0]]):
            wide[start[0] : stop[0]] = after[start[0] : stop[0]]
            narrow[start[1] : stop[1]] = before[start[1] : stop[1]]
        start = stop
    return factor.expand(wide).reshape(narrow)


def _stop(shape: Sequence[int], count: int) -> int:
    """The number of dimensions, from the first one, whose sizes have this product; sizes of 1 that follow included."""
    return max(i + 1 for i, product in enumerate(accumulate(shape, mul)) if product == count)


def reordered_factor(factor: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """The factor of a tensor, from that of the result of `permute(dims)`."""
    inverse = [0] * len(dims)
    for position, dim in enumerate(dims):
        inverse[dim % len(dims)] = position
    return factor.permute(inverse)
