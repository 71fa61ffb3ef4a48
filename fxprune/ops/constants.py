"""The reads of an operation, as data: the values that functions registered with `reads_constants` return.

Such a function gets an operation that is about to run, as a `Seen`, and lists its reads. An operation reads a channel
in one of three ways: it sums over the channels with constant weights, so that a bias can take up a constant; it sums
over them in another way, so that removed ones must be zero; or nothing is known. What it does slot by slot is no read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fxprune.ops.dependence import Seen


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """y[o, s'] = sum_{k, t} columns[o, k, t] * x[k, s], with constant columns.

    dim: the dimension of x that is summed over, and `out` that of the outputs in the result, counted from the end.
    columns: [outputs, slots of a block, taps]; transposed [outputs of a block, slots of all blocks, taps].
    outputs: how many there are, in as many blocks as the slots.
    bias: the tensor that is added per output. weight: the tensor whose numbers the columns are, if it can change.
    padded: True if zeros stand around x in space, so that a constant is another one near the border.
    apply: the operation without bias, for another x.
    """

    x: torch.Tensor
    dim: int
    columns: torch.Tensor
    outputs: int
    bias: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    out: int = -1
    blocks: int = 1
    transposed: bool = False
    padded: bool = False
    apply: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Sum:
    """Any other sum over a dimension, where removed slots must be zero: in x or in the factor that it meets."""

    x: torch.Tensor
    dim: int
    factor: torch.Tensor | None = None
    factor_dim: int = 0


@dataclass(frozen=True, eq=False)
class Whole:
    """An operation that may do anything with some tensors: removed slots of all their dimensions must be zero."""

    tensors: Sequence[torch.Tensor]


Read = WeightedSum | Sum | Whole


def whole(seen: Seen) -> list[Read]:
    """Each argument as a whole."""
    return [Whole(seen.tensors)]
