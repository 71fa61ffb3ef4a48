"""A model that two processes train and prune together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import fxprune
from tests.follow.nets import batch, net
from tests.processes import run_together


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(data).square().mean().backward()
    optimizer.step()


TALKS: list[int] = []


def counting(state: object, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """A communication hook that does as without one, and counts."""
    TALKS.append(1)
    return allreduce_hook(None, bucket)


counting.__annotations__ = allreduce_hook.__annotations__  # torch looks at them, and takes no text


def both(rank: int) -> None:
    """Train and prune with a half of each batch, and compare with a process that has all of it."""
    alone, shared = net(), net()
    wrapped = DistributedDataParallel(shared, bucket_cap_mb=1)
    wrapped.register_comm_hook(None, counting)
    called: list[int] = []
    handles = [wrapped.register_forward_pre_hook(lambda *args: called.append(1)) for _ in range(2)]
    options = {"keep": {"macs": 0.3}, "steps": 2}
    optimizers = [torch.optim.Adam(model.parameters(), 0.01) for model in (alone, shared)]
    pruners = [
        fxprune.GradualPruner(model, batch(0), optimizer=optimizer, **options)
        for model, optimizer in zip((alone, wrapped), optimizers, strict=True)
    ]
    for seed in range(4):
        train(alone, optimizers[0], batch(seed))
        train(wrapped, optimizers[1], batch(seed)[2 * rank : 2 * rank + 2])
        if seed % 2:
            steps = [pruner.step() for pruner in pruners]
            assert steps[0].plan.removed == steps[1].plan.removed
    assert isinstance(wrapped, DistributedDataParallel)
    assert wrapped.module is shared
    assert shared.stem.out_channels < 8
    assert len(called) == 8
    handles[0].remove()
    assert len(TALKS) >= 4
    for a, b in zip(alone.parameters(), shared.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    with torch.no_grad():
        shared.inner.weight.mul_(torch.rand_like(shared.inner.weight) if rank else 1.0)
    before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    again = fxprune.GradualPruner(wrapped, batch(0), keep={"macs": 0.3}, steps=1)
    with pytest.raises(fxprune.PlanError, match=r"do not agree on a plan\n  at   \".*\n  why  process 0"):
        again.step()
    sizes: list[int] = []
    wrong: dict[str, Any] = {"importance": (lambda group: [1.0] * (sizes or [group.size])[0]) if rank else "l2"}
    later = fxprune.GradualPruner(wrapped, batch(0), keep={"macs": 0.3}, steps=1, **wrong)
    sizes.append(1)
    text = "wrong shape" if rank else r"process 1 raised\n  at   process 0 of 2\n  why "
    with pytest.raises(fxprune.PlanError, match=text):
        later.step()
    with pytest.raises(fxprune.PlanError, match=text):
        fxprune.GradualPruner(wrapped, batch(0), keep={"macs": 0.3}, steps=1, **wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in shared.state_dict().items())


def test_two_processes_prune_as_one_and_raise_together() -> None:
    run_together(both, 2)
