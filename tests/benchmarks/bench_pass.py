"""Seconds of analysis and rewrite, against Torch-Pruning (building its graph, one step of its magnitude pruner).

Both remove 30 % of every group by l1 norm from the same float32 model. Every model gets a fresh process, in which
the two take turns: the first turn is the first call, the median is over the turns. Torch-Pruning changes its model,
so each of its turns gets a copy that is made while the clock stands still; the copy that fxprune makes is counted.
Both run on one thread: with more, each waits at every layer for threads that other processes keep from running, and
what is measured is how busy the machine is.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import statistics
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import fxprune
from tests.benchmarks.common import in_fresh_process, median_ratio, model_and_input, seconds, table

NAMES = ("resnet50", "resnet152", "densenet121", "densenet201", "efficientnet_b7", "convnext_large", "regnet_y_16gf")
ONCE = ("densenet201",)  # the peer needs most of a minute
RATIO = 0.3


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


def measure_one(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of each call of both; to be run in a fresh process."""
    importlib.import_module("torch_pruning")  # loaded now: its import is not what is measured

    torch.set_num_threads(1)
    model, x = model_and_input(name)
    times: dict[str, list[float]] = {"fxprune": [], "torch-pruning": []}

    def ours() -> None:
        fxprune.transform(model, x, ratio=RATIO, importance="l1", verify=False)

    for turn in range(rounds):
        times["fxprune"].append(seconds(ours))
        if turn == 0 or name not in ONCE:
            clone = copy.deepcopy(model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                times["torch-pruning"].append(seconds(lambda clone=clone: torch_pruning_step(clone, x)))
    return times


def measure(names: Sequence[str] = NAMES, rounds: int = 5) -> str:
    """The table, and below it the medians of its last columns."""
    rows: list[Sequence[object]] = []
    for name in names:
        times = in_fresh_process("tests.benchmarks.bench_pass", "--child", name, "--rounds", rounds)
        ours, theirs = times["fxprune"], times["torch-pruning"]
        first = (ours[0], theirs[0], theirs[0] / ours[0])
        later = [statistics.median(t[1:] or t) for t in (ours, theirs)]
        pairs = (theirs[1:], ours[1:]) if len(theirs) > 1 else (later[1:], later[:1])
        rows.append((name, *first, *later, median_ratio(*pairs)))
    rows.append(("median", None, None, _median(rows, 3), None, None, _median(rows, 6)))
    headers = (
        "model",
        "fxprune, first call (s)",
        "torch-pruning, first call (s)",
        "times faster",
        "fxprune, later calls (s)",
        "torch-pruning, later calls (s)",
        "times faster",
    )
    return table(headers, rows)


def _median(rows: Sequence[Sequence[Any]], column: int) -> float:
    return statistics.median(row[column] for row in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="torchvision models")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each, the first included")
    parser.add_argument("--child", action="store_true", help="measure one model in this process, print JSON")
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure_one(options.names[0], options.rounds)))
    else:
        print(measure(options.names, options.rounds))


if __name__ == "__main__":
    main()
