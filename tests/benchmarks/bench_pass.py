"""Seconds of `transform`, without and with its proof, against Torch-Pruning (its graph, one step of its pruner).

Both remove 30 % of every group by l1 norm from the same float32 model, as a class. Every model and size of the image
gets a fresh process, in which the three take turns: the first turn is the first call, the median is over the others.
Torch-Pruning changes its model, so each of its turns gets a copy that is made while the clock stands still; the copy
that fxprune makes is counted. All run on one thread, and the time is that of the processor: so the figures depend least
on what else the machine does.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import json
import statistics
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import fxprune
from tests.benchmarks.common import in_fresh_process, model_and_input, processor_seconds, table

NAMES = ("resnet50", "resnet152", "densenet121", "densenet201", "efficientnet_b7", "convnext_large", "regnet_y_16gf")
PIXELS = (64, 224)
ONCE = ("densenet201",)  # the peer needs most of a minute
RATIO = 0.3
OURS, PROVEN, PEER = "fxprune", "with proof", "torch-pruning"


def torch_pruning_step(model: nn.Module, x: torch.Tensor) -> None:
    """The whole pass of the peer, in place. The classifier is named by hand, or its outputs would go too."""
    import torch_pruning

    classifier = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        global_pruning=False,
        pruning_ratio=RATIO,
        ignored_layers=[classifier],
    )
    pruner.step()


def measure_one(name: str, pixels: int, rounds: int) -> dict[str, Any]:
    """Seconds of each call of the three; to be run in a fresh process."""
    importlib.import_module("torch_pruning")  # loaded now: its import is not what is measured

    torch.set_num_threads(1)
    model, x = model_and_input(name)
    x = x[..., :pixels, :pixels].contiguous()
    times: dict[str, list[float]] = {OURS: [], PROVEN: [], PEER: []}

    def ours(verify: bool) -> None:
        fxprune.transform(model, x, ratio=RATIO, importance="l1", verify=verify)

    for turn in range(rounds):
        times[OURS].append(processor_seconds(lambda: ours(False)))
        times[PROVEN].append(processor_seconds(lambda: ours(True)))
        if turn == 0 or name not in ONCE:
            clone = copy.deepcopy(model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                times[PEER].append(processor_seconds(lambda clone=clone: torch_pruning_step(clone, x)))
    return times


def measure(names: Sequence[str] = NAMES, pixels: Sequence[int] = PIXELS, rounds: int = 4) -> str:
    """The table, and below it the medians of its ratios."""
    rows: list[Sequence[Any]] = []
    for name, size in itertools.product(names, pixels):
        arguments = ("--child", name, "--pixels", size, "--rounds", rounds)
        times = in_fresh_process("tests.benchmarks.bench_pass", *arguments)
        first = [times[OURS][0], times[PEER][0]]
        later = [statistics.median(times[each][1:] or times[each]) for each in (OURS, PROVEN, PEER)]
        rows.append((name, size, *first, first[1] / first[0], *later, later[2] / later[0], later[2] / later[1]))
    rows += medians(rows, pixels, (4, 8, 9))
    headers = (
        *("model", "pixels", "first call (s)", "torch-pruning, first call (s)", "times faster"),
        *("later calls (s)", "later, with proof (s)", "torch-pruning, later (s)"),
        *("times faster, later", "times faster, with proof"),
    )
    return table(headers, rows)


def medians(rows: Sequence[Sequence[Any]], pixels: Sequence[int], ratios: Sequence[int]) -> list[Sequence[Any]]:
    """A row for each size of the image with the medians of these columns. Rows begin with a name and a size."""
    made: list[Sequence[Any]] = []
    for size in pixels:
        own = [row for row in rows if row[1] == size]
        columns = range(2, len(own[0]))
        made.append(
            ("median", size, *(statistics.median(r[at] for r in own) if at in ratios else None for at in columns))
        )
    return made


def parsed(description: str | None, rounds: int, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a benchmark that runs each model and size of the image in a process of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("names", nargs="*", default=NAMES, help="torchvision models")
    parser.add_argument("--pixels", nargs="*", type=int, default=PIXELS, help="sizes of the image")
    parser.add_argument("--rounds", type=int, default=rounds, help="calls of each, the first included")
    parser.add_argument("--child", action="store_true", help="measure one model in this process, print JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    options = parsed(__doc__, 4, arguments)
    if options.child:
        print(json.dumps(measure_one(options.names[0], options.pixels[0], options.rounds)))
    else:
        print(measure(options.names, options.pixels, options.rounds))


if __name__ == "__main__":
    main()
