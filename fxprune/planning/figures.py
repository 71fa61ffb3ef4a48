"""The figures that budgets limit: of the model that was analysed, and of the smaller ones that removals leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Removal
from fxprune.costs import (
    ActiveParams,
    CacheBytes,
    Cost,
    LatencyFile,
    LatencyTable,
    PeakMemory,
    active_params,
    cache_bytes,
    contradicted,
    cost,
    measured_in_turn,
    peak_memory,
)
from fxprune.costs.count import cost_of
from fxprune.costs.decoding import decoding
from fxprune.costs.latency import Runs, runnable
from fxprune.files import PathLike

Figures = Mapping[str, float | None]
"""Name of a measure -> its figure, None if it is unknown."""

COUNTED: Mapping[str, Callable[[Cost], int | None]] = {
    "params": lambda cost: cost.params,
    "bytes": lambda cost: cost.bytes,
    "macs": lambda cost: cost.macs,
}
"""The measures that a `Cost` has."""


class Predicts(Protocol):
    """Figures of the smaller models that removals leave. full: that of the original."""

    full: int

    def of(self, removal: Removal | None = None) -> int:
        """The figure, with a removal that of the smaller model."""


@dataclass(frozen=True)
class ComputedFigure:
    """Something that no `Cost` has, and a budget can limit.

    label: its name in a report. of: a function from a model and its inputs to its figure, in bytes or a number.
    predicts: from an analysis to the figures of smaller models. unit: of a figure in a text.
    adds_up: True if it is a sum, so that channels that change it do so at any width of others.
    """

    label: str
    of: Callable[[nn.Module, Any], int]
    predicts: Callable[[Findings], Predicts]
    unit: str = "bytes"
    adds_up: bool = True


COMPUTED: Mapping[str, ComputedFigure] = {
    "memory": ComputedFigure("peak memory of activations, bytes", peak_memory, PeakMemory, adds_up=False),
    "cache": ComputedFigure("cache, bytes", cache_bytes, CacheBytes),
    "active_params": ComputedFigure("parameters for one token", active_params, ActiveParams, "params"),
}
"""The measures that are computed from a model, beside those of a `Cost`."""

TIMED: Mapping[str, Runs] = {"latency": runnable, "decode_latency": decoding}
"""The measures in seconds: what is timed."""

MEASURES = (*COUNTED, *COMPUTED, *TIMED)
"""Everything that a budget can limit."""


def counted(cost: Cost) -> dict[str, float | None]:
    """The figures of a `Cost`."""
    return {key: of(cost) for key, of in COUNTED.items()}


Measured = dict[str, tuple[float, float]]
"""Name of a measure that no `Cost` has -> its figure for the original and for the small model."""


def with_measured(costs: tuple[Cost, Cost], measured: Mapping[str, tuple[float, float]]) -> tuple[Figures, Figures]:
    """The figures of the original and of the small model: those of their costs, and those that were measured."""
    before, after = map(counted, costs)
    return before | {k: v[0] for k, v in measured.items()}, after | {k: v[1] for k, v in measured.items()}


def measured_of(models: Sequence[nn.Module], example_inputs: Any, keys: Iterable[str]) -> dict[str, list[float]]:
    """The figures of models that are there, side by side, of these names; those of a `Cost` are left out."""
    found: dict[str, list[float]] = {}
    for key in keys:
        if key in COMPUTED:
            found[key] = [COMPUTED[key].of(model, example_inputs) for model in models]
        elif key in TIMED:
            times = measured_in_turn(models, example_inputs, 10 if models[1:] else 20, runs=TIMED[key])
            found[key] = [one.seconds for one in times]
    return found


def figures_of(model: nn.Module, example_inputs: Any, keys: Iterable[str]) -> dict[str, float | None]:
    """The figures of a model that is there, at least those of these names. Its latency is measured now."""
    beside = measured_of([model], example_inputs, keys)
    return counted(cost(model, example_inputs)) | {key: figures[0] for key, figures in beside.items()}


def pairs_of(first: nn.Module, second: nn.Module, example_inputs: Any, keys: Iterable[str]) -> Measured:
    """The figures of two models of these names; those of a `Cost` are left out."""
    return {k: (one, two) for k, (one, two) in measured_of([first, second], example_inputs, keys).items()}


def contradictions(
    findings: Findings, removal: Removal, measured: Measured, table: PathLike | bool | None
) -> Iterator[str]:
    """Sentences on tables of latencies that a measurement contradicts; their files are dropped. table: their folder."""
    file = LatencyFile.of(findings.model, table) if measured.keys() & TIMED.keys() else None
    for key, runs in TIMED.items():
        if file is not None and key in measured:
            told = contradicted(findings, removal, measured[key], file, runs)
            if told:
                yield f"{key}: {told}"


class Meter:
    """The figures of the model that was analysed, and those that removals leave.

    keys: the names of the measures.
    table: makes a table of latencies, for the name of one. Only these need it.
    """

    def __init__(
        self,
        findings: Findings,
        keys: Iterable[str],
        table: Callable[[str], LatencyTable] | None = None,
    ) -> None:
        self.findings = findings
        self.keys = frozenset(keys)
        self._whole = cost_of(findings)
        self._computed = {key: one.predicts(findings) for key, one in COMPUTED.items() if key in self.keys}
        self._tables = {key: table(key) for key in TIMED if table is not None and key in self.keys}

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The operations whose multiply-adds are not known."""
        return self._whole.uncounted

    def of(self, removal: Removal | None = None) -> Figures:
        """The figures of the smaller model that a removal leaves, of the original without one."""
        found: dict[str, float | None] = {}
        if self.keys & COUNTED.keys():
            found |= counted(self._whole if removal is None else cost_of(self.findings, removal))
        for key, one in self._computed.items():
            found[key] = one.full if removal is None else one.of(removal)
        for key, table in self._tables.items():
            found[key] = table.full if removal is None else table.predict(removal)
        return found

    @property
    def measures(self) -> bool:
        """True if some figures are predicted from measurements, see `learn`."""
        return bool(self._tables)

    def learn(self, removal: Removal) -> bool:
        """Measure the smaller model that a removal leaves, so that its figures are known, and those near it better.

        Returns False if they were known before.
        """
        learned = [table.learn(removal) for table in self._tables.values()]
        return any(learned)
