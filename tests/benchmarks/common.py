"""Helpers of the benchmark scripts: models, clocks, fresh processes, tables."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from tests.support import randomise, torchvision

PIXELS = 224


def model_and_input(name: str, batch: int = 1) -> tuple[nn.Module, torch.Tensor]:
    """A torchvision model as it is initialised (float32, evaluation mode), its affines and statistics random."""
    torch.manual_seed(0)
    model = torchvision().models.get_model(name).eval()
    return randomise(model, 0), torch.randn(batch, 3, PIXELS, PIXELS)


def seconds(function: Callable[[], Any]) -> float:
    """The seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def processor_seconds(function: Callable[[], Any]) -> float:
    """The seconds of the processor during one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function in each round, one after the other in every round, after one round to warm up.

    What slows the machine down for a while slows all of them down: compare within a round.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times


def median_ratio(of: Sequence[float], over: Sequence[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(of, over, strict=True))


def in_fresh_process(module: str, *arguments: object) -> Any:
    """Run `python -m module arguments` and return the JSON on its last line of output."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], floats: str | tuple[str, ...] = ".2f") -> str:
    """A table of plain text that is Markdown as well."""
    return tabulate(rows, headers=headers, tablefmt="github", floatfmt=floats)
