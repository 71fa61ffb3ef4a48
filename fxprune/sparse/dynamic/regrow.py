"""The choice of connections that stay, are pruned, or grow; and the optimizer's memory of them."""

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
    """Two bools per connection, of the weight's shape: True if it is active, and True if it gets a new value."""

    active: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Update:
    """The result of an update of one layer, in numbers of connections.

    kept: active before and after, with their values. grown: active after, with new values. pruned: active before and
    not after. sparsity: the share of connections that are not active after.
    """

    kept: int
    grown: int
    pruned: int
    sparsity: float


def shares(size: int, sparsity: float, regrow: float) -> tuple[int, int]:
    """The numbers of `size` connections that keep their value, and that are active: k1 and k2, at least 1.

    >>> shares(20, sparsity=0.85, regrow=1 / 3)
    (2, 3)
    """
    active = max(1, round((1 - sparsity) * size))
    return max(1, active - round(regrow * active)), active


def slices(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """[slice, connection]: one slice for every combination of indices in `dims`, of all others a connection each."""
    others = [d for d in range(tensor.ndim) if d not in dims]
    return tensor.permute(*dims, *others).reshape(math.prod(tensor.shape[d] for d in dims), -1)


def unslice(flat: Tensor, shape: torch.Size, dims: Sequence[int]) -> Tensor:
    """The inverse of `slices`."""
    order = [*dims, *(d for d in range(len(shape)) if d not in dims)]
    back = sorted(range(len(order)), key=order.__getitem__)
    return flat.reshape([shape[d] for d in order]).permute(back)


def ranks(scores: Tensor, ties: Tensor) -> Tensor:
    """The place of every score in its row, 0 for the highest. Equal scores go by `ties`, equal ties by index.

    >>> ranks(torch.tensor([[3, 5, 3, 5]]), torch.tensor([[0.1, 0.2, 0.3, 0.2]]))
    tensor([[3, 0, 2, 1]])
    """
    order = ties.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def strongest(strengths: Tensor, weight: Tensor, mask: Tensor, dims: Sequence[int], k1: int, k2: int) -> Choice:
    """In every slice the k1 strongest connections stay, the next up to k2 get a new value, all others are pruned.

    So is also one of the k1 that was not active: it has no value yet. Equal strengths go by |weight|.
    """
    places = ranks(slices(strengths, dims), slices(weight.abs(), dims))
    active = unslice(places < k2, mask.shape, dims)
    return Choice(active, active & ~(unslice(places < k1, mask.shape, dims) & mask))


def random(mask: Tensor, dims: Sequence[int], k1: int, k2: int, generator: torch.Generator | None) -> Choice:
    """In every slice k1 of the active connections stay, chosen at random, and k2 - k1 of the others become active.

    Where fewer than k1 are active all of them stay, and others fill up.
    """
    before = slices(mask, dims)
    draws = torch.rand(2, *before.shape, device=mask.device, generator=generator, dtype=torch.float64)
    kept = ranks(before.to(torch.int8), draws[0]) < k1
    active = unslice(ranks(kept.to(torch.int8), draws[1]) < k2, mask.shape, dims)
    return Choice(active, active & ~(unslice(kept, mask.shape, dims) & mask))


def initial(weight: Tensor, dims: Sequence[int], active: int) -> Tensor:
    """A mask with this many connections of every slice active, chosen at random."""
    draws = slices(torch.rand(weight.shape, device=weight.device), dims)
    return unslice(ranks(draws, draws) < active, weight.shape, dims)


def new_values(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in [-1, 1] / sqrt(fan_in): how torch initialises its linear and convolution layers.

    Kaiming uniform with a = sqrt(5), gain sqrt(2 / (1 + a^2)) and bound gain * sqrt(3 / fan_in) (He et al. 2015,
    "Delving Deep into Rectifiers"; `reset_parameters` of `nn.Linear` and `nn.Conv2d`). fan_in counts all connections
    of an output channel, active or not.
    """
    values = torch.empty_like(weight)
    nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
    return values


def check_optimizer(optimizer: Any, weight: Tensor) -> None:
    """Refuse what is no optimizer of this weight."""
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise PlanError(f"optimizer must be a torch.optim.Optimizer or None, not {type(optimizer).__name__}")
    if not any(p is weight for group in optimizer.param_groups for p in group["params"]):
        raise PlanError(
            "the optimizer does not hold this layer's weight",
            at=f"weight of shape {tuple(weight.shape)}",
            why="its memory of the connections that change could not be reset",
            do="pass the optimizer that trains the layer, or None where there is none",
        )


def forget(optimizer: torch.optim.Optimizer | None, weight: Tensor, where: Tensor) -> None:
    """Set to 0 at these positions, in place: the gradient, and every tensor of the weight's shape in its state.

    Momenta, averages and the squares that step sizes come from: a connection that changes starts like a new one.
    """
    state = {} if optimizer is None else optimizer.state.get(weight, {})
    for tensor in (weight.grad, *state.values()):
        if isinstance(tensor, Tensor) and tensor.shape == weight.shape:
            tensor.masked_fill_(where, 0)
