"""Measures and writes JSON lines; a run that was stopped goes on where it ended.

python -m tests.benchmarks.choosing.run --tasks resnet vgg --seeds 0 1 2 --tools ours peers nas
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxprune
from tests.benchmarks.choosing.ours import Ours
from tests.benchmarks.choosing.peers import FastNAS, TorchPruning
from tests.benchmarks.choosing.tasks import TASKS, Budget, Task

RESULTS = Path(__file__).with_name("results.jsonl")
CACHE = Path(tempfile.gettempdir()) / "fxprune_choosing"
TOOLS: dict[str, Callable[[Task], Any]] = {"ours": Ours, "peers": TorchPruning, "nas": FastNAS}
NAMES = {"ours": "fxprune", "peers": "torch-pruning", "nas": "FastNAS"}

MODES = ["weights", "outputs"]
"""The modes of the repair that are measured."""

Key = tuple[str, int, str, str, str]


class Results:
    """The lines of a file, and the way to add some."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_text().splitlines() if file.exists() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._known = {self._key(line) for line in self.lines}

    @staticmethod
    def _key(line: dict[str, Any]) -> Key:
        return line["task"], line["seed"], line["tool"], line["way"], line["budget"]

    def has(self, *key: Any) -> bool:
        """True if the measurement is there."""
        return key in self._known

    def add(self, **line: Any) -> None:
        """Append a line."""
        self.lines.append(line)
        self._known.add(self._key(line))
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def measured(task: Task, tool: str, maker: Any, way: str, budget: Budget, *, tuned: bool) -> dict[str, Any]:
    """The scores of one small model: as it is, with statistics taken anew, repaired, and each trained further."""
    start = time.process_time()
    small = maker.small(way, budget)
    found: dict[str, Any] = {"seconds": round(time.process_time() - start, 2)}
    found["kept"] = round(fxprune.cost(small, task.inputs).macs / fxprune.cost(task.model, task.inputs).macs, 4)
    found["scores"] = {
        name: _rounded(task.score(made)) for name, made in _finished(task, tool, maker, way, small, found)
    }
    if tuned and task.train is not None:
        for name, made in _finished(task, tool, maker, way, small, {}):
            if name != "statistics":
                task.train(made)
                found["scores"][f"{name}, trained"] = _rounded(task.score(made))
    return found


def _finished(
    task: Task, tool: str, maker: Any, way: str, small: nn.Module, found: dict[str, Any]
) -> Iterator[tuple[str, nn.Module]]:
    yield "one-shot", small
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in small.modules()):
        yield "statistics", fxprune.recalibrate(small, task.batches)
    if tool == "ours":
        for name, mode in (("repaired", "weights"), ("outputs", "outputs")):
            if mode not in MODES:
                continue
            start = time.process_time()
            made = maker.repaired(small, mode, way)
            found[f"{name}, seconds"] = round(time.process_time() - start, 2)
            yield name, made


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 2) for value in values]


def run(
    task: Task, seed: int, tool: str, results: Results, *, ways: Sequence[str] = (), budgets: Sequence[str] = ()
) -> None:
    """All measurements of a tool on a task that are not there."""
    maker = TOOLS[tool](task)
    for way in maker.ways():
        for budget in task.budgets:
            key = (task.name, seed, NAMES[tool], way, budget.name)
            wanted = (not ways or way in ways) and (not budgets or budget.name in budgets)
            if results.has(*key) or not wanted:
                continue
            line = dict(zip(("task", "seed", "tool", "way", "budget"), key, strict=True))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tuned = budget.name == "15 %" and task.name == "resnet"
                    line |= measured(task, tool, maker, way, budget, tuned=tuned)
            except Exception as error:  # a tool that fails is a result
                line["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            results.add(**line)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--ways", nargs="*", default=[], help="only these criteria")
    parser.add_argument("--budgets", nargs="*", default=[], help='only these, such as "15 %%"')
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES), help="of the repair")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=CACHE, help="the folder of trained models")
    options = parser.parse_args(arguments)
    MODES[:] = options.modes
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    results = Results(options.results)
    for seed in options.seeds:
        for name in options.tasks:
            task = TASKS[name](seed, options.cache)
            whole = (name, seed, "", "unpruned", "100 %")
            if not results.has(*whole):
                line = dict(zip(("task", "seed", "tool", "way", "budget"), whole, strict=True))
                results.add(**line, kept=1.0, scores={"one-shot": _rounded(task.score(task.model))})
            for tool in options.tools:
                run(task, seed, tool, results, ways=options.ways, budgets=options.budgets)


if __name__ == "__main__":
    main()
