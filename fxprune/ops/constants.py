"""The reads of an operation, as data: the values that functions registered with `reads_constants` return.

An operation reads a channel in one of three ways:

- `WeightedSum`: it sums over the channels with constant weights, as a layer does. A bias can take up a constant.
- `Sum`: it sums over them in another way. Removed channels must be zero there.
- `Whole`: nothing is known. Removed channels must be zero.

An operation that treats each slot on its own, as relu does, reads nothing: a constant stays a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fxprune.ops.dependence import Seen


@dataclass(frozen=True, eq=False)
class WeightedSum:
    """y[o, s'] = sum_{k, t} columns[o, k, t] * x[k, s], with columns that do not depend on the inputs.

    A tap t is a position in the kernel: each pair of s' and t reads one position s. A matrix product has one tap.

    x: the tensor that is read. dim: the dimension of x that is summed over.
    columns: the weight as [outputs, slots of a block, taps]; [outputs of a block, slots of all blocks, taps] if
        `transposed`. blocks: the number of conv groups; outputs and slots are in as many blocks.
    outputs: the number of outputs. out: their dimension in the result, counted from the end (-1 is the last).
    bias: the tensor that is added to each output. weight: the parameter that the columns are views of, None if its
        numbers must not change.
    padded: True if zeros are padded around x in space, so that a constant adds less near the border.
    apply: the operation without bias, as a function of x.
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
    """Any other sum over a dimension of x, in which removed slots must be zero.

    factor: the second tensor of a product, None if there is none; `factor_dim` is its dimension that is summed over.
        It is enough if removed slots are zero in one of the two.
    """

    x: torch.Tensor
    dim: int
    factor: torch.Tensor | None = None
    factor_dim: int = 0


@dataclass(frozen=True, eq=False)
class Whole:
    """An unknown use of some tensors: removed slots of all their dimensions must be zero."""

    tensors: Sequence[torch.Tensor]


Read = WeightedSum | Sum | Whole


def whole(seen: Seen) -> list[Read]:
    """The reads of an operation of which nothing is known: all its tensors."""
    return [Whole(seen.tensors)]
