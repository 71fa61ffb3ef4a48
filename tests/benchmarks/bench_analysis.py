"""The time of an analysis, in fake-tensor forwards of the same traced graph and in milliseconds per node.

Both are warm. The cost per node should not grow with the number of nodes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fxprune
from tests.benchmarks.common import interleaved, median_ratio, model_and_input, table

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def fake_forward(traced: fx.GraphModule, x: torch.Tensor) -> Any:
    """One forward of `traced` on fake tensors; these are made beforehand, and reused by every call."""
    mode = FakeTensorMode()
    fakes = {name: mode.from_tensor(t) for name, t in [*traced.named_parameters(), *traced.named_buffers()]}
    fake_x = mode.from_tensor(x)

    def run() -> None:
        with torch.no_grad(), mode:
            torch.func.functional_call(traced, fakes, (fake_x,))

    return run


def measure_one(model: nn.Module, x: torch.Tensor, rounds: int) -> tuple[int, float, float, float, float]:
    """Nodes, milliseconds of a forward and of the analysis, their ratio, milliseconds per node."""
    traced = fx.symbolic_trace(model)
    nodes = len(traced.graph.nodes)
    functions = {"forward": fake_forward(traced, x), "analyze": lambda: fxprune.analyze(traced, x)}
    times = interleaved(functions, rounds)
    forward, analyze = (1000 * statistics.median(times[key]) for key in ("forward", "analyze"))
    return nodes, forward, analyze, median_ratio(times["analyze"], times["forward"]), analyze / nodes


def measure(names: Sequence[str] = NAMES, rounds: int = 11) -> str:
    """The table."""
    rows = [(name, *measure_one(*model_and_input(name), rounds)) for name in names]
    headers = ("model", "graph nodes", "fake forward (ms)", "analyze (ms)", "analyze / forward", "analyze, ms per node")
    return table(headers, rows, ("", "", ".1f", ".1f", ".2f", ".3f"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="torchvision models")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args(arguments)
    print(measure(options.names, options.rounds))


if __name__ == "__main__":
    main()
