"""The work of each of two processes in the test of distributed training; few imports make it start fast."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fxprune.sparse.dynamic.layers import DynamicSparseConv2d, DynamicSparseLinear, update_layers


def net(growth: str) -> nn.Module:
    return nn.Sequential(
        DynamicSparseConv2d(3, 6, 3, sparsity=0.6, every=2, growth=growth, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        DynamicSparseLinear(6 * 5 * 5, 4, sparsity=0.8, every=2, growth=growth),
    )


def train(rank: int, size: int, folder: str) -> None:
    """Three steps and an update, twice, on data of its own; what it saw goes into a file of the folder."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    seen = {}
    for growth in ("coactivation", "random"):
        torch.manual_seed(100 + rank)  # other first masks, other data, other random numbers on each rank
        model = net(growth)
        parallel = DistributedDataParallel(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(2):
            for _ in range(3):
                optimizer.zero_grad()
                parallel(torch.randn(4, 3, 5, 5)).square().mean().backward()
                optimizer.step()
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            done = update_layers(model, optimizer)
        after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        counts = {name: [update.kept, update.grown, update.pruned] for name, update in done.items()}
        seen[growth] = {"before": before, "after": after, "moments": moments, "counts": counts}
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
