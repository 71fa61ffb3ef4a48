"""Counting coactivations, against the methods of the notes it goes back to, and against a training step.

The first table takes the time of `coactivation` and of the notes' two vectorised methods on the same convolution: f1, a
convolution for every connection of an output channel, and f2, one grouped convolution that stacks them; building those
is left out. All results are compared before the clock starts.

The second takes a training step (forward, backward, step of SGD with momentum) of a convolution followed by relu and a
mean: dense, masked (random growth, which counts nothing) and dynamic, whose count every 20 steps is spread over them.

Times are processor time of one thread: what else the machine does counts less than in seconds of the clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.criteria.connections import coactivation
from fxprune.sparse.dynamic.layers import DynamicSparseConv2d
from tests.benchmarks.common import median_ratio, table
from tests.criteria.slow_coactivation import single_units, stacked_units

EVERY = 20

COUNTS: tuple[tuple[str, dict[str, Any], tuple[int, ...], int], ...] = (
    ("8 to 7, 2x2 (the notes' toy)", {"in_channels": 8, "out_channels": 7, "kernel_size": 2}, (2, 8, 5, 3), 15),
    ("3 to 6, 5x5 (the notes' training)", {"in_channels": 3, "out_channels": 6, "kernel_size": 5}, (4, 3, 32, 32), 15),
    ("64 to 64, 3x3", {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1}, (4, 64, 16, 16), 2),
)
"""The convolutions: name, arguments, the shape of the input, and the number of rounds."""

STEPS: tuple[tuple[str, dict[str, Any], tuple[int, ...], int], ...] = (
    (*COUNTS[1][:3], 99),
    ("64 to 64, 3x3", COUNTS[2][1], (16, 64, 32, 32), 9),
    ("256 to 256, 3x3", {"in_channels": 256, "out_channels": 256, "kernel_size": 3, "padding": 1}, (8, 256, 14, 14), 9),
)


def in_turns(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of processor time of each function in each round, all in turns, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            if turn:
                times[name].append(time.process_time() - start)
    return times


def calls_in_a_row(function: Callable[[], Any], least: float = 0.05) -> int:
    """The number of calls that take this many seconds, in a row as `%timeit` of the notes makes them."""
    calls, taken = 1, 0.0
    while taken < least:
        start = time.process_time()
        for _ in range(calls):
            function()
        taken = time.process_time() - start
        calls = calls if taken >= least else 2 * calls
    return calls


def counted(name: str, arguments: dict[str, Any], shape: tuple[int, ...], rounds: int) -> tuple[object, ...]:
    """A row of the first table."""
    torch.manual_seed(0)
    conv = nn.Conv2d(**arguments).requires_grad_(False)
    x = torch.randn(shape)
    y = conv(x)
    f1, f2 = single_units(conv), stacked_units(conv)
    methods: dict[str, Callable[[], Tensor]] = {
        "f1": lambda: f1(x, y),
        "f2": lambda: f2(x, y),
        "ours": lambda: coactivation(x, y, conv),
    }
    expected = methods["ours"]()
    if not all(torch.equal(method().long(), expected) for method in methods.values()):
        raise AssertionError(f"the methods do not count the same: {name}")
    calls = {key: calls_in_a_row(method) for key, method in methods.items()}

    def repeated(key: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls[key]):
                methods[key]()

        return run

    times = in_turns({key: repeated(key) for key in methods}, rounds)
    each = {key: [taken / calls[key] for taken in times[key]] for key in methods}
    batch = "x".join(map(str, shape))
    cells = [1000 * statistics.median(each[key]) for key in methods]
    return (name, batch, *cells, *(median_ratio(each[key], each["ours"]) for key in ("f1", "f2")))


def stepped(name: str, arguments: dict[str, Any], shape: tuple[int, ...], rounds: int) -> tuple[object, ...]:
    """A row of the second table: a round is as many steps as lie between two counts."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    dense = nn.Conv2d(**arguments)
    options: dict[str, Any] = {"sparsity": 0.9, "every": EVERY}
    layers = {
        "dense": dense,
        "masked": DynamicSparseConv2d.from_dense(dense, growth="random", **options),
        "dynamic": DynamicSparseConv2d.from_dense(dense, **options),
    }

    def training(layer: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.001, momentum=0.9)

        def run() -> None:
            for _ in range(EVERY):
                optimizer.zero_grad()
                torch.relu(layer(x)).mean().backward()
                optimizer.step()

        return run

    times = in_turns({key: training(layer) for key, layer in layers.items()}, rounds)
    batch = "x".join(map(str, shape))
    ratios = (median_ratio(times[key], times["dense"]) for key in ("masked", "dynamic"))
    return (name, batch, *(1000 * statistics.median(its) / EVERY for its in times.values()), *ratios)


def measure() -> str:
    """Both tables, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        counts = [counted(*case) for case in COUNTS]
        steps = [stepped(*case) for case in STEPS]
    finally:
        torch.set_num_threads(threads)
    first = ("convolution", "input", "f1 (ms)", "f2 (ms)", "coactivation (ms)", "f1 / ours", "f2 / ours")
    second = (
        "convolution",
        "input",
        "dense step (ms)",
        "masked (ms)",
        "dynamic (ms)",
        "masked / dense",
        "dynamic / dense",
    )
    return "\n\n".join(
        (
            table(first, counts, ("", "", ".3f", ".3f", ".3f", ".1f", ".1f")),
            table(second, steps, ("", "", ".2f", ".2f", ".2f", ".2f", ".2f")),
        )
    )


if __name__ == "__main__":
    print(measure())
