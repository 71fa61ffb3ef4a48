"""Sparse layers compared with dense ones: bytes are counted, latency is measured."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.arguments import checks_arguments, fits
from fxprune.capture.inputs import bound, normalize
from fxprune.errors import PlanError
from fxprune.sparse.storage.convert import SPARSE, densify, sparsify

Timer = Callable[[Callable[[], Any]], float]
"""Runs a function once and returns the seconds that it took."""

DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
"""The densities at which `break_even` measures by default."""


def seconds(function: Callable[[], Any]) -> float:
    """Returns the seconds that one call takes, including the work that it starts on a GPU."""
    start = time.perf_counter()
    result = function()
    for device in {t.device for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.is_cuda}:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Comparison:
    """The figures of a module with sparse layers and of the same module with dense layers.

    layers: the number of sparse layers. layouts: their layouts, sorted. density: stored values over the elements of the
    dense weights. dense_bytes, sparse_bytes: the bytes of all parameters and buffers, indices included. dense_ms,
    sparse_ms: the median latency of a forward over `repeats` rounds, each with one forward of both modules; None if it
    was not measured. threads: the number of threads of torch.
    """

    layers: int
    layouts: tuple[str, ...]
    density: float
    dense_bytes: int
    sparse_bytes: int
    dense_ms: float | None
    sparse_ms: float | None
    repeats: int
    threads: int

    @property
    def slower(self) -> bool | None:
        """True if the sparse module took longer than the dense one; None if it was not measured."""
        if self.dense_ms is None or self.sparse_ms is None:
            return None
        return self.sparse_ms > self.dense_ms

    def __str__(self) -> str:
        """The figures, and a sentence that says which module is faster."""
        noun = "layer" if self.layers == 1 else "layers"
        share = f"{self.sparse_bytes / self.dense_bytes:.3f} times"
        share += "" if self.sparse_bytes < self.dense_bytes else ", not smaller"
        lines = [
            f"{self.layers} sparse {noun} ({', '.join(self.layouts)}), density {self.density:.3f}",
            f"bytes    dense {self.dense_bytes}, sparse {self.sparse_bytes}: {share}",
        ]
        if self.dense_ms is None or self.sparse_ms is None:
            return "\n".join([*lines, "latency  unknown: no example input was given"])
        how = f"median of {self.repeats}, {self.threads} thread{'s' * (self.threads != 1)}"
        lines.append(f"latency  dense {self.dense_ms:.3f} ms, sparse {self.sparse_ms:.3f} ms ({how})")
        if self.sparse_ms > self.dense_ms:
            lines.append(f"The sparse module is slower than the dense one at density {self.density:.3f}.")
        elif self.sparse_ms < self.dense_ms:
            lines.append(f"The sparse module is faster than the dense one at density {self.density:.3f}.")
        else:
            lines.append("Both take the same time.")
        return "\n".join(lines)


@dataclass(frozen=True)
class BreakEven:
    """The density below which a sparse linear layer is faster than the dense one.

    density: the sparse layer was faster below it; None if it was slower at every measured density. points: (density,
    dense milliseconds, sparse milliseconds) by rising density. It is the density that was reached, not the one asked
    for, and counts all values of a stored block.
    """

    in_features: int
    out_features: int
    layout: str
    batch: int
    density: float | None
    points: tuple[tuple[float, float, float], ...]
    threads: int

    def __str__(self) -> str:
        """One sentence: the density, or that sparse is faster, or slower, at every measured density."""
        matrix = f"{self.layout} [{self.out_features}, {self.in_features}], batch {self.batch}"
        lowest, highest = self.points[0][0], self.points[-1][0]
        if self.density is None:
            return f"{matrix}: none found; sparse is slower even at density {lowest:.3g}"
        if self.density == highest:
            return f"{matrix}: sparse is faster at every density measured, up to {highest:.3g}"
        return f"{matrix}: sparse is faster below density {self.density:.3g}"


@checks_arguments("module")
def compare(module: nn.Module, example_inputs: Any = None, *, repeats: int = 30, timer: Timer = seconds) -> Comparison:
    """Compares a module that has, or is, a sparse layer with the same module with dense layers (`densify`).

    Args:
        module: only read; a copy of it is timed, in its mode (training or evaluation) and under inference mode.
        example_inputs: a tensor, a tuple of arguments or a dict of keywords; without them latency is not measured.
        repeats: the number of rounds, each with one forward of both modules; one more round before is not counted.
        timer: a function that runs the function it is given, and returns seconds.

    Raises `PlanError` if there is no sparse layer, and `InputError` for inputs that do not fit.

    >>> import torch
    >>> from fxprune.sparse import sparsify
    >>> layer = torch.nn.Linear(4, 2)
    >>> layer.weight.data = torch.tensor([[0.0, 2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    >>> print(compare(sparsify(layer)))  # 2 * 4 bytes of values, 5 * 4 of indices, 2 * 4 of bias
    1 sparse layer (csr), density 0.250
    bytes    dense 40, sparse 36: 0.900 times
    latency  unknown: no example input was given
    """
    _check_count("repeats", repeats)
    layers: list[Any] = [m for m in module.modules() if isinstance(m, SPARSE)]
    if not layers:
        raise PlanError(
            "there is no sparse layer to compare",
            at=type(module).__name__,
            why="none of its modules is a SparseLinear or SparseConv2d",
            do="call `sparsify` first",
        )
    dense = densify(module)
    medians: tuple[float | None, float | None] = (None, None)
    if example_inputs is not None:
        args, kwargs = normalize(example_inputs)
        bound(module, (args, kwargs))
        medians = _medians(
            partial(dense, *args, **kwargs), partial(copy.deepcopy(module), *args, **kwargs), repeats, timer
        )
    elements = sum(m.dense_weight().numel() for m in layers)
    return Comparison(
        layers=len(layers),
        layouts=tuple(sorted({m.layout for m in layers})),
        density=sum(m.density * m.dense_weight().numel() for m in layers) / elements,
        dense_bytes=_bytes(dense),
        sparse_bytes=_bytes(module),
        dense_ms=medians[0],
        sparse_ms=medians[1],
        repeats=repeats,
        threads=torch.get_num_threads(),
    )


@checks_arguments("dtype", "densities", "timer")
def break_even(
    in_features: int,
    out_features: int,
    layout: str = "csr",
    *,
    batch: int = 1,
    blocksize: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    densities: Sequence[float] = DENSITIES,
    repeats: int = 30,
    timer: Timer = seconds,
) -> BreakEven:
    """Measures the density below which a sparse linear layer is faster than the dense one, on this machine's CPU.

    At each of `densities`, a layer of random weights (of random whole blocks for "bsr") and the dense layer with the
    same weight are timed on x [batch, in_features]. The result lies between the last density up to which sparse is
    always faster and the next one, where the ratio of both latencies, taken as linear in between, is 1. Weights and x
    come from a fixed seed.

    Args:
        in_features, out_features, dtype: of the layers.
        layout, blocksize: as for `sparsify`.
        batch: the number of rows of x.
        densities: the densities to measure, each between 0 and 1.
        repeats, timer: as for `compare`.

    >>> def timer(forward):  # pretends that a stored value takes 3 times as long as a weight of a dense layer
    ...     layer = forward.func
    ...     return getattr(layer, "density", 1 / 3) * 1e-3
    >>> print(break_even(64, 64, densities=(0.1, 0.2, 0.5), timer=timer))
    csr [64, 64], batch 1: sparse is faster below density 0.333
    """
    for name, value in (("in_features", in_features), ("out_features", out_features), ("batch", batch)):
        _check_count(name, value)
    _check_count("repeats", repeats)
    wrong = [d for d in densities if not fits(d, float) or not 0 < d < 1]
    if wrong or not densities:
        what = f"densities must be numbers between 0 and 1, not {wrong[0] if wrong else densities!r}"
        raise PlanError(
            what,
            at="densities",
            why="a density is the share of weights that stay",
            do="pass for example densities=(0.01, 0.1, 0.3)",
        )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, in_features, generator=generator).to(dtype)
    points = []
    for density in sorted(set(densities)):
        sparse: Any = sparsify(
            _random_layer(in_features, out_features, density, blocksize, dtype, generator),
            layout=layout,
            blocksize=blocksize,
        )
        dense_s, sparse_s = _medians(partial(sparse.to_dense(), x), partial(sparse, x), repeats, timer)
        points.append((sparse.density, dense_s, sparse_s))
    found = _crossing(points)
    return BreakEven(in_features, out_features, layout, batch, found, tuple(points), torch.get_num_threads())


def _random_layer(
    in_features: int, out_features: int, density: float, blocksize: Any, dtype: torch.dtype, generator: torch.Generator
) -> nn.Linear:
    """Returns a linear layer in which this share of the weights, or blocks, is random and not zero; at least one is."""
    height, width = blocksize if isinstance(blocksize, tuple) and len(blocksize) == 2 else (1, 1)
    grid = (math.ceil(out_features / height), math.ceil(in_features / width))
    kept = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    count = min(max(1, round(density * kept.numel())), max(1, kept.numel() - 1))
    kept[torch.randperm(kept.numel(), generator=generator)[:count]] = True
    mask = kept.view(grid).repeat_interleave(height, 0).repeat_interleave(width, 1)[:out_features, :in_features]
    layer = nn.Linear(in_features, out_features, device="meta")
    magnitudes = torch.rand(out_features, in_features, generator=generator) + 0.5
    layer.weight = nn.Parameter((magnitudes * mask).to(dtype))
    layer.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype))
    return layer


def _medians(dense: Callable[[], Any], sparse: Callable[[], Any], repeats: int, timer: Timer) -> tuple[float, float]:
    """Returns the median milliseconds of both. Every round runs both; the first round is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for function, into in zip((dense, sparse), times, strict=True):
                into.append(1000 * timer(function))
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def _crossing(points: Sequence[tuple[float, float, float]]) -> float | None:
    """Returns the density at which sparse is first as slow as dense; the last one where it always is faster."""
    won: tuple[float, float] | None = None
    for density, dense, sparse in points:
        ratio = sparse / dense if dense else math.inf
        if ratio >= 1:
            if won is None:
                return None
            share = (1 - won[1]) / (ratio - won[1])
            return won[0] + share * (density - won[0])
        won = (density, ratio)
    return points[-1][0]


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in itertools.chain(module.parameters(), module.buffers()))


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PlanError(
            f"{name} must be a positive integer, not {value!r}",
            at=f"{name}={value!r}",
            why="it counts calls",
            do=f"pass for example {name}=10",
        )
