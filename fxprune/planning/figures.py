"""The figures that budgets limit: of the model that was analysed, and of the smaller ones that removals leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Removal
from fxprune.costs import Cost, LatencyTable, PeakMemory, cost, measure, peak_memory
from fxprune.costs.count import cost_of

Figures = Mapping[str, float | None]
"""Name of a measure -> its figure, None if it is unknown."""

COUNTED: Mapping[str, Callable[[Cost], int | None]] = {
    "params": lambda cost: cost.params,
    "bytes": lambda cost: cost.bytes,
    "macs": lambda cost: cost.macs,
}
"""The measures that a `Cost` has."""

MEASURES = (*COUNTED, "memory", "latency")
"""Everything that a budget can limit. Memory is in bytes, latency in seconds."""


def counted(cost: Cost) -> dict[str, float | None]:
    """The figures of a `Cost`."""
    return {key: of(cost) for key, of in COUNTED.items()}


Measured = dict[str, tuple[float, float]]
"""Name of a measure that no `Cost` has -> its figure for the original and for the small model."""


def with_measured(costs: tuple[Cost, Cost], measured: Mapping[str, tuple[float, float]]) -> tuple[Figures, Figures]:
    """The figures of the original and of the small model: those of their costs, and those that were measured."""
    before, after = map(counted, costs)
    return before | {k: v[0] for k, v in measured.items()}, after | {k: v[1] for k, v in measured.items()}


def figures_of(model: nn.Module, example_inputs: Any, keys: Iterable[str]) -> dict[str, float | None]:
    """The figures of a model that is there, at least those of these names. Its latency is measured now."""
    found = counted(cost(model, example_inputs))
    if "memory" in keys:
        found["memory"] = peak_memory(model, example_inputs)
    if "latency" in keys:
        found["latency"] = measure(model, example_inputs).seconds
    return found


class Meter:
    """The figures of the model that was analysed, and those that removals leave.

    keys: the names of the measures.
    table: makes a table of latencies. Only a latency needs it.
    """

    def __init__(
        self,
        findings: Findings,
        keys: Iterable[str],
        table: Callable[[], LatencyTable] | None = None,
    ) -> None:
        self.findings = findings
        self.keys = frozenset(keys)
        self._whole = cost_of(findings)
        self._memory = PeakMemory(findings) if "memory" in self.keys else None
        self._table = table() if table is not None and "latency" in self.keys else None

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The operations whose multiply-adds are not known."""
        return self._whole.uncounted

    def of(self, removal: Removal | None = None) -> Figures:
        """The figures of the smaller model that a removal leaves, of the original without one."""
        found: dict[str, float | None] = {}
        if self.keys & COUNTED.keys():
            found |= counted(self._whole if removal is None else cost_of(self.findings, removal))
        if self._memory is not None:
            found["memory"] = self._memory.full if removal is None else self._memory.of(removal)
        if self._table is not None:
            found["latency"] = self._table.full if removal is None else self._table.predict(removal)
        return found

    @property
    def measures(self) -> bool:
        """True if some figures are predicted from measurements, see `learn`."""
        return self._table is not None

    def learn(self, removal: Removal) -> bool:
        """Measure the smaller model that a removal leaves, so that its figures are known, and those near it better.

        Returns False if they were known before.
        """
        return self._table is not None and self._table.learn(removal)
