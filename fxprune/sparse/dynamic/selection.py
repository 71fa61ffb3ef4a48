"""Selection of the connections that an update keeps, prunes or grows, and the reset of their optimizer state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import PlanError


@dataclass(frozen=True)
class Choice:
    """The outcome for every connection, as two bools of the weight's shape.

    active: True if it is active afterwards. fresh: True if it gets a new value.
    """

    active: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Update:
    """The result of an update of one layer, in numbers of connections.

    kept: active before and afterwards, with their values. grown: active afterwards, with new values. pruned: active
    before, but not afterwards. sparsity: the share of connections that are not active afterwards.
    """

    kept: int
    grown: int
    pruned: int
    sparsity: float


def shares(size: int, sparsity: float, regrow: float) -> tuple[int, int]:
    """Returns (k1, k2) for a slice of `size` connections: k2 are active, k1 of them keep their value; both at least 1.

    >>> shares(20, sparsity=0.85, regrow=1 / 3)
    (2, 3)
    """
    active = max(1, round((1 - sparsity) * size))
    return max(1, active - round(regrow * active)), active


def counts_of_the_notes(size: int) -> tuple[int, int]:
    """Returns (k1, k2) of the notes that the layers go back to: a tenth, and 15 % rounded down; both at least 1.

    >>> counts_of_the_notes(25), counts_of_the_notes(9)
    ((2, 3), (1, 1))
    """
    return max(int(0.1 * size), 1), max(int(0.15 * size), 1)


def slices(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Reshapes a tensor to [slice, connection]: a slice for every combination of the indices in `dims`."""
    others = [d for d in range(tensor.ndim) if d not in dims]
    return tensor.permute(*dims, *others).reshape(math.prod(tensor.shape[d] for d in dims), -1)


def unslice(flat: Tensor, shape: torch.Size, dims: Sequence[int]) -> Tensor:
    """Inverts `slices`: [slice, connection] to a tensor of this shape."""
    order = [*dims, *(d for d in range(len(shape)) if d not in dims)]
    back = sorted(range(len(order)), key=order.__getitem__)
    return flat.reshape([shape[d] for d in order]).permute(back)


def ranks(scores: Tensor, ties: Tensor) -> Tensor:
    """Returns the rank of every score in its row, 0 for the highest. `ties` orders equal scores, the index equal ties.

    >>> ranks(torch.tensor([[3, 5, 3, 5]]), torch.tensor([[0.1, 0.2, 0.3, 0.2]]))
    tensor([[3, 0, 2, 1]])
    """
    order = ties.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    rank = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, rank)


def strongest(strengths: Tensor, weight: Tensor, mask: Tensor, dims: Sequence[int], k1: int, k2: int) -> Choice:
    """Selects in every slice the k2 strongest connections; all others are pruned.

    The k1 strongest keep their value; the others, and those that were not active before, get a new one. |weight|
    orders connections of equal strength.
    """
    rank = ranks(slices(strengths, dims), slices(weight.abs(), dims))
    active = unslice(rank < k2, mask.shape, dims)
    return Choice(active, active & ~(unslice(rank < k1, mask.shape, dims) & mask))


def random(mask: Tensor, dims: Sequence[int], k1: int, k2: int, generator: torch.Generator | None) -> Choice:
    """Selects in every slice k1 of the active connections at random, which stay, and k2 - k1 of the others, which grow.

    If fewer than k1 are active, all of them stay, and more of the others grow.
    """
    before = slices(mask, dims)
    draws = torch.rand(2, *before.shape, device=mask.device, generator=generator, dtype=torch.float64)
    kept = ranks(before.to(torch.int8), draws[0]) < k1
    active = unslice(ranks(kept.to(torch.int8), draws[1]) < k2, mask.shape, dims)
    return Choice(active, active & ~(unslice(kept, mask.shape, dims) & mask))


def initial(weight: Tensor, dims: Sequence[int], active: int) -> Tensor:
    """Returns a random mask with `active` connections in every slice."""
    draws = slices(torch.rand(weight.shape, device=weight.device), dims)
    return unslice(ranks(draws, draws) < active, weight.shape, dims)


def new_values(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Returns values uniform in [-1, 1] / sqrt(fan_in), as torch initialises linear layers and convolutions.

    Kaiming uniform with a = sqrt(5), gain sqrt(2 / (1 + a^2)) and bound gain * sqrt(3 / fan_in) (He et al. 2015,
    "Delving Deep into Rectifiers"; `reset_parameters` of `nn.Linear` and `nn.Conv2d`). fan_in counts all connections
    of an output channel, active or not.
    """
    values = torch.empty_like(weight)
    nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
    return values


def check_optimizer(optimizer: Any, weight: Tensor) -> None:
    """Raises `PlanError` unless this is None or an optimizer of the weight."""
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise PlanError(
            f"optimizer must be a torch.optim.Optimizer or None, not {type(optimizer).__name__}",
            at="update",
            why="its state is reset where connections change",
            do="pass the optimizer that trains the layer",
        )
    if not any(p is weight for group in optimizer.param_groups for p in group["params"]):
        raise PlanError(
            "the optimizer does not hold this layer's weight",
            at=f"weight of shape {tuple(weight.shape)}",
            why="its memory of the connections that change could not be reset",
            do="pass the optimizer that trains the layer, or None where there is none",
        )


def forget(optimizer: torch.optim.Optimizer | None, weight: Tensor, where: Tensor) -> None:
    """Sets the gradient, and every tensor of the weight's shape in its optimizer state, to 0 where `where` is True.

    These are momenta and running averages; a pruned or new connection then starts without them.
    """
    state = {} if optimizer is None else optimizer.state.get(weight, {})
    for tensor in (weight.grad, *state.values()):
        if isinstance(tensor, Tensor) and tensor.shape == weight.shape:
            tensor.masked_fill_(where, 0)
