"""Small graphs, pruned by half: is the result right? fxprune and Torch-Pruning, judged by the same function.

`tests/small_graphs.py` has the graphs, `tests/right_or_wrong.py` the judgement.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import fxprune
from tests.benchmarks.common import table
from tests.right_or_wrong import VERDICTS, Slots, elements, slots_missing, slots_of, verdict
from tests.small_graphs import GRAPHS, Graph

RATIO = 0.5
SECONDS = 20
"""The processor time that a tool gets for one graph."""


@dataclass(frozen=True)
class Outcome:
    """A tool's result on a graph: the verdict, how many elements of parameters went, the reason or error."""

    verdict: str
    removed: int = 0
    why: str = ""

    def rank(self) -> tuple[int, int]:
        """The key of a sort: a smaller one is better."""
        return VERDICTS.index(self.verdict), -self.removed


Tool = Callable[[Graph, nn.Module, tuple[Any, ...]], tuple[nn.Module, Slots, str]]
"""A function of a graph, its model and inputs: the small model, the removed slots, the reason if there are none."""


def ours(graph: Graph, model: nn.Module, inputs: tuple[Any, ...]) -> tuple[nn.Module, Slots, str]:
    """fxprune as it is by default."""
    small = fxprune.transform(model, inputs, ratio=RATIO)
    record = fxprune.record(small)
    reason = next((r for r in record.reasons if ": " in r), "")
    return small, slots_of(model, record.removed), re.sub(r" \(/[^)]*\)|: holds.*", "", reason)


def theirs(
    graph: Graph, model: nn.Module, inputs: tuple[Any, ...], *, heads: bool = True
) -> tuple[nn.Module, Slots, str]:
    """Torch-Pruning as its documentation does it: the layers of the output are ignored, and what is static is mended.

    heads: it is told the numbers of heads.
    """
    import torch_pruning

    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    pruner = torch_pruning.pruner.MagnitudePruner(
        small,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(),
        pruning_ratio=RATIO,
        ignored_layers=[module for name, module in modules.items() if name.startswith("head")],
        num_heads={modules[name]: number for name, number in graph.heads.items()} if heads else {},
    )
    pruner.step()
    graph.mend(small)
    return small, slots_missing(model, small), ""


TOOLS: dict[str, Sequence[Tool]] = {
    "fxprune": (ours,),
    "torch-pruning": (theirs, functools.partial(theirs, heads=False)),
}
"""Name of a tool -> the ways to use it: the second one only where there are heads. The best result counts."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """`TimeoutError` after `SECONDS` of processor time."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(tool: Tool, graph: Graph) -> Outcome:
    """The result of a tool on a graph."""
    model, inputs = graph.build()
    try:
        with limited():
            small, removed, why = tool(graph, model, inputs)
    except TimeoutError:
        return Outcome("raised", why=f"stopped after {SECONDS} s")
    except Exception as error:  # whatever a tool raises
        return Outcome("raised", why=type(error).__name__)
    judged = verdict(model, small, inputs, removed)
    return Outcome(judged, elements(model) - elements(small), why if judged == "nothing removed" else "")


def measure(names: Sequence[str] = ()) -> str:
    """Verdicts by tool, and verdicts by graph."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    graphs = [graph for graph in GRAPHS if graph.name in names or not names]
    made = {
        name: [
            min((outcome(way, graph) for way in (ways if graph.heads else ways[:1])), key=Outcome.rank)
            for graph in graphs
        ]
        for name, ways in TOOLS.items()
    }
    return f"{_summary(made)}\n\n{_by_graph(graphs, made)}"


def _summary(made: Mapping[str, Sequence[Outcome]]) -> str:
    rows: list[list[object]] = []
    for one in VERDICTS:
        rows.append([one, *(sum(o.verdict == one for o in found) for found in made.values())])
    rows.append(["graphs", *map(len, made.values())])
    rows.append(["parameters removed, all graphs", *(sum(o.removed for o in found) for found in made.values())])
    right = [sum(o.removed for o in found if o.verdict == "right") for found in made.values()]
    rows.append(["parameters removed, where right", *right])
    return table(("verdict", *made), rows)


def _by_graph(graphs: Sequence[Graph], made: Mapping[str, Sequence[Outcome]]) -> str:
    rows: list[list[object]] = []
    for graph, *outcomes in zip(graphs, *made.values(), strict=True):
        row: list[object] = [graph.name, elements(graph.build()[0])]
        for found in outcomes:
            row += [f"{found.verdict} ({found.why})" if found.why else found.verdict, found.removed]
        rows.append(row)
    return table(("graph", "parameters", *(word for name in made for word in (name, "removed"))), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="names of graphs; default: all")
    print(measure(parser.parse_args(arguments).names))


if __name__ == "__main__":
    main()
