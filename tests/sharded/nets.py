"""Networks under `fully_shard`, and their training."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from tests.follow.nets import Net, batch, net

BUDGET: dict[str, Any] = {"keep": {"macs": 0.3}, "steps": 2}


def sharded(model: nn.Module | None = None) -> Any:
    """The network of the tests of optimizers with two of its layers in a group each."""
    made = net() if model is None else model
    assert isinstance(made, Net)
    for layer in (made.stem, made.inner):
        fully_shard(layer)
    return fully_shard(made)


def part_of(data: torch.Tensor, rank: int) -> torch.Tensor:
    """The part of a batch that a process reads."""
    return data.chunk(torch.distributed.get_world_size())[rank]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(data).square().mean().backward()
    optimizer.step()


def train_both(rank: int, alone: tuple[Any, Any], shared: tuple[Any, Any], seed: int) -> None:
    """A step of one process with a whole batch, and of several with a part of it each."""
    train(*alone, batch(seed))
    train(*shared, part_of(batch(seed), rank))


def whole(tensor: Any) -> torch.Tensor:
    made: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return made.detach()


def distance(alone: nn.Module, shared: nn.Module) -> float:
    """The largest difference between the parameters of two models."""
    pairs = zip(alone.parameters(), shared.parameters(), strict=True)
    return max(float((a.detach() - whole(b)).abs().max()) for a, b in pairs)
