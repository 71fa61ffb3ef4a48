"""A masked linear layer against the dense one and a product with a sparse CSR matrix: forward, and with backward.

All compute the same connections, are compared first, and run in turns on one thread. Figures are medians over the
rounds of the ratio to the dense layer within a round.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import warnings
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.sparse import MaskedLinear, plain, random_mask
from tests.benchmarks.common import interleaved, median_ratio, table

SIZES = (256, 1024, 2048)
DENSITIES = (0.5, 0.1, 0.01)
BATCH = 64
ROUNDS = 15


class Csr(nn.Module):
    """y = (W x^T)^T + b with W in torch's CSR layout, whose values alone are a parameter."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        sparse = dense.weight.detach().to_sparse_csr()
        self.weight = nn.Parameter(sparse)
        self.bias = nn.Parameter(dense.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]"""
        return (self.weight @ x.T).T + self.bias


def backward(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """One step's work: forward, and the gradients of weight, bias and input."""

    def run() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).sum().backward()

    return run


def measure(sizes: Sequence[int] = SIZES) -> str:
    """The table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Sparse CSR tensor support")
    rows = []
    for size, density in itertools.product(sizes, DENSITIES):
        torch.manual_seed(0)
        masked = MaskedLinear(size, size, random_mask(size, size, fan_in=max(1, round(size * density))))
        dense = plain(masked)
        layers = {"dense": dense, "masked": masked, "csr": Csr(dense)}
        x = torch.randn(BATCH, size)
        for layer in layers.values():
            assert torch.allclose(layer(x), F.linear(x, dense.weight, dense.bias), atol=1e-5)
        with torch.no_grad():
            forward = interleaved({name: functools.partial(layer, x) for name, layer in layers.items()}, ROUNDS)
        x.requires_grad_()
        both = interleaved({name: backward(layer, x) for name, layer in layers.items()}, ROUNDS)
        cells: list[object] = [size, f"{density:.0%}"]
        for times in (forward, both):
            cells.append(1e3 * statistics.median(times["dense"]))
            cells += [median_ratio(times[name], times["dense"]) for name in ("masked", "csr")]
        rows.append(cells)
    headers = ["width", "connected"]
    for part in ("forward", "with backward"):
        headers += [f"{part}, dense (ms)", "masked / dense", "CSR / dense"]
    return table(headers, rows, ("", "", ".2f", ".2f", ".2f", ".2f", ".2f", ".2f"))


if __name__ == "__main__":
    print(measure())
