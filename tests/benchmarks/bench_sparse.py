"""Bytes and latency of sparse layers over those of dense ones, by layout, density, size and batch, on one thread.

The dense layer holds the same weights with zeros where nothing is stored; both outputs are compared first, and both run
in turns in inference mode, float32. Times are those that the thread was running, so that other processes, which take
the core away for whole milliseconds, do not count. The last table: the density below which the sparse layer is faster.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fxprune.sparse import break_even, compare, sparsify
from tests.benchmarks.common import table
from tests.support import relative_error

LAYOUTS: tuple[tuple[str, int], ...] = (("csr", 0), ("coo", 0), ("bsr", 4), ("bsr", 16))
SIZES = (256, 1024, 2048)
BATCHES = (1, 64)
DENSITIES = (0.01, 0.05, 0.1, 0.2, 0.5)


def cpu_seconds(function: Callable[[], Any]) -> float:
    """The seconds that the thread runs for one call."""
    start = time.thread_time()
    function()
    return time.thread_time() - start


def name_of(layout: str, block: int) -> str:
    """The name in the tables."""
    return f"{layout} {block}x{block}" if block else layout


def thinned(layer: nn.Module, density: float, block: int) -> nn.Module:
    """The layer with this share of its weights, or of blocks of its matrix, the others zero."""
    weight = layer.get_parameter("weight")
    matrix = weight.detach().flatten(1)
    unit = block or 1
    grid = torch.rand(matrix.shape[0] // unit, matrix.shape[1] // unit)
    kept = torch.zeros(grid.numel(), dtype=torch.bool)
    kept[grid.view(-1).topk(max(1, round(density * grid.numel()))).indices] = True
    mask = kept.view_as(grid).repeat_interleave(unit, 0).repeat_interleave(unit, 1)
    weight.data = torch.where(mask, matrix, 0).view_as(weight)
    return layer.eval()


def row(layer: nn.Module, layout: str, block: int, inputs: Sequence[torch.Tensor], rounds: int) -> list[object]:
    """Density, bytes over bytes, and for every input the milliseconds of both and their ratio."""
    sparse = sparsify(layer, layout=layout, blocksize=(block, block) if block else None)
    cells: list[object] = []
    for x in inputs:
        with torch.inference_mode():
            assert relative_error(sparse(x), layer(x)) < 1e-5
        found = compare(sparse, x, repeats=rounds, timer=cpu_seconds)
        assert found.dense_ms is not None
        assert found.sparse_ms is not None
        cells += [found.dense_ms, found.sparse_ms, found.sparse_ms / found.dense_ms]
    return [name_of(layout, block), found.density, found.sparse_bytes / found.dense_bytes, *cells]


def linear_rows(size: int, rounds: int) -> Iterator[list[object]]:
    """One square linear layer in every layout and density."""
    inputs = [torch.randn(batch, size) for batch in BATCHES]
    for (layout, block), density in itertools.product(LAYOUTS, DENSITIES):
        yield row(thinned(nn.Linear(size, size), density, block), layout, block, inputs, rounds)


def conv_rows(channels: int, pixels: int, rounds: int) -> Iterator[list[object]]:
    """Two convolutions, of kernel 1 and 3, in rows of 16 x 16 blocks and rows of single weights."""
    inputs = [torch.randn(1, channels, pixels, pixels)]
    for kernel, (layout, block), density in itertools.product((1, 3), (("csr", 0), ("bsr", 16)), (0.01, 0.1, 0.3)):
        conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        yield [f"{kernel}x{kernel}", *row(thinned(conv, density, block), layout, block, inputs, rounds)]


def measure(size: int = 1024, sizes: Sequence[int] = SIZES, rounds: int = 40) -> str:
    """The three tables."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timed = [f"{kind}, batch {batch}" for batch in BATCHES for kind in ("dense (ms)", "sparse (ms)", "ratio")]
        by_density = table(
            ["layout", "density", "bytes ratio", *timed],
            list(linear_rows(size, rounds)),
            ("", ".3f", ".3f", *[".3f", ".3f", ".2f"] * len(BATCHES)),
        )
        convolutions = table(
            ["kernel", "layout", "density", "bytes ratio", "dense (ms)", "sparse (ms)", "ratio"],
            list(conv_rows(128, 28, rounds)),
            ("", "", ".3f", ".3f", ".3f", ".3f", ".2f"),
        )
        rows = []
        for width, batch in itertools.product(sizes, BATCHES):
            cells = [str(break_even_cell(width, layout, block, batch, rounds)) for layout, block in LAYOUTS]
            rows.append([f"{width} x {width}", batch, *cells])
        crossings = table(["weight", "batch", *(name_of(*layout) for layout in LAYOUTS)], rows)
    finally:
        torch.set_num_threads(threads)
    return "\n\n".join((by_density, convolutions, crossings))


def break_even_cell(size: int, layout: str, block: int, batch: int, rounds: int) -> str:
    """The density of break-even, or what was found instead."""
    blocksize, repeats = ((block, block) if block else None), max(5, rounds // 2)
    found = break_even(size, size, layout, batch=batch, blocksize=blocksize, repeats=repeats, timer=cpu_seconds)
    if found.density is None:
        return f"none down to {found.points[0][0]:.3f}"
    return f"all up to {found.density:.3f}" if found.density == found.points[-1][0] else f"{found.density:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="of the square layer of the first table")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of the last table")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args(arguments)
    print(measure(options.size, options.sizes, options.rounds))


if __name__ == "__main__":
    main()
