"""Memory and time of a `SparseLinear` between very many nodes, which no dense weight could connect.

The process takes the resident memory that it has before the connections are drawn, and the most that it had after each
part. Run it alone: `python -m tests.benchmarks.bench_connections [nodes] [connections] [batch]`.
"""

from __future__ import annotations

import resource
import sys
import time

import torch

from fxprune.sparse import SparseLinear


def megabytes() -> float:
    """The most resident memory that this process has had, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(nodes: int = 1_000_000, count: int = 10_000_000, batch: int = 8) -> None:
    """Prints the memory and the seconds of making the layer and of three steps with Adam, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = megabytes()
    key = torch.unique((torch.arange(count) % nodes) * nodes + torch.randint(nodes, (count,)))
    where = torch.stack((key // nodes, key % nodes))[:, torch.randperm(len(key))]
    del key
    print(f"connections drawn: {megabytes() - before:.0f} MB")
    start = time.process_time()
    layer = SparseLinear.from_indices(nodes, nodes, where)
    del where
    print(f"layer made: {megabytes() - before:.0f} MB, {time.process_time() - start:.1f} s; {layer}")
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    x = torch.randn(batch, nodes)
    for step in range(3):
        start = time.process_time()
        optimizer.zero_grad()
        loss = (layer(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        print(
            f"step {step}: {megabytes() - before:.0f} MB, {time.process_time() - start:.1f} s, loss {loss.item():.4f}"
        )


if __name__ == "__main__":
    measure(*(int(float(word)) for word in sys.argv[1:]))
