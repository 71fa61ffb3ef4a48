"""When few weights of a layer are left, does it pay to store only those: how small and how fast does it get?

A small classifier learns with its small weights at zero. Its linear layers then become sparse matrices: outputs stay,
the bytes shrink with the density, and whether it is faster is measured, here and on this machine.

    python examples/sparse_weights.py
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.sparse import break_even, compare, sparsify_model


def thin(model: nn.Module, density: float) -> None:
    """Set all but the largest weights of each linear layer to zero, in place."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                size = layer.weight.abs()
                bound = size.flatten().kthvalue(int((1 - density) * size.numel())).values
                layer.weight.mul_(size > bound)


def train(model: nn.Module, x: Tensor, y: Tensor, *, density: float, steps: int = 30) -> float:
    """A few steps of Adam, the small weights set to zero after each; returns the last loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        thin(model, density)
    return float(loss.detach())


def main() -> None:
    """Train, make the layers sparse, compare, ask where sparse begins to pay, and load what was stored."""
    torch.manual_seed(0)
    x = torch.randn(256, 64)
    y = (x[:, :8].sum(1) > 0).long() + 2 * (x[:, 8:16].sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))
    print(f"loss with a tenth of the weights: {train(model, x, y, density=0.1):.3f}\n")

    sparse = sparsify_model(model.eval())
    print(sparse)
    with torch.no_grad():
        difference = (sparse(x) - model(x)).abs().max().item()
    print(f"largest difference of the outputs: {difference:.1e}")
    assert difference < 1e-4

    for batch in (1, 256):
        print(f"\nbatch {batch}\n{compare(sparse, x[:batch], repeats=10)}")
    print()
    for layout, blocksize in (("csr", None), ("bsr", (16, 16))):
        print(break_even(512, 512, layout, blocksize=blocksize, batch=64, repeats=5))

    state = sparse.state_dict()  # dense tensors alone: torch.save and safetensors take them
    fresh = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))
    loaded = sparsify_model(fresh, math.inf)  # sparse layers that hold nothing yet
    loaded.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(loaded(x), sparse(x))
    print(f"\nloaded from {', '.join(list(state)[:4])}, ...: the same outputs")


if __name__ == "__main__":
    main()
