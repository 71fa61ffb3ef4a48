"""The contents of reports as plain data: of an analysis, and of the record of a small model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fxprune.analysis.findings import Findings
from fxprune.costs import Cost, LayerCost, cost_of, per_channel, withheld
from fxprune.report.repairs import RepairData, Repaired, repair_data

SCHEMA = "fxprune.report/1"

Shape = tuple[int, ...]


@dataclass(frozen=True)
class MemberData:
    """One dimension of a tensor in which the channels of a group have slots.

    role: "producer", "consumer", "norm", or "raw" for a tensor of a module that is no layer of torch.
    """

    parameter: str
    dim: int
    role: str


@dataclass(frozen=True)
class GroupData:
    """A group. params_per_channel, macs_per_channel: those of one channel alone, None where they are unknown.

    reasons: the statistics that its removal changes; none of an exact group.
    """

    name: str
    kind: str
    channels: int
    params_per_channel: int
    macs_per_channel: int | None
    exact: bool
    reasons: tuple[str, ...]
    members: tuple[MemberData, ...]


@dataclass(frozen=True)
class HeldData:
    """The number of slots of one dimension of a tensor that a lock holds."""

    parameter: str
    dim: int
    slots: int


@dataclass(frozen=True)
class LockedData:
    """An operation that holds channels back.

    module: its path, "" for the model itself. node: of the graph that was walked. file, line: where the user's
        code calls it, None where that is unknown.
    params, macs: what these slots carry, at most; None where that is unknown.
    """

    operation: str
    module: str
    node: str
    file: str | None
    line: int | None
    why: str
    params: int
    macs: int | None
    holds: tuple[HeldData, ...]


@dataclass(frozen=True)
class LayerData:
    """A module without the modules in it: its class, the shapes of its tensors, and its cost."""

    name: str
    type: str
    params: int
    macs: int | None
    shapes: Mapping[str, Shape]


@dataclass(frozen=True)
class AnalysisData:
    """The report of an analysis. macs: None where some are not counted; `uncounted` says which."""

    schema: str
    kind: str
    model: str
    path: str
    params: int
    bytes: int
    macs: int | None
    macs_at_least: int
    uncounted: tuple[str, ...]
    groups: tuple[GroupData, ...]
    locked: tuple[LockedData, ...]
    layers: tuple[LayerData, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """A figure before and after; None where it is unknown."""

    before: float | None
    after: float | None


@dataclass(frozen=True)
class TensorChange:
    """The shapes of a tensor, by its name in its module. after: None if the small model lacks it."""

    name: str
    before: Shape
    after: Shape | None


@dataclass(frozen=True)
class LayerChange:
    """A module without the modules in it, before and after."""

    name: str
    params: Change
    macs: Change
    tensors: tuple[TensorChange, ...]


@dataclass(frozen=True)
class RecordData:
    """The report of a record.

    error: None where the small model was not compared with its reference.
    one_sided: sentences about operations that did not run equally often in both models.
    repair: what was repaired, None without a repair.
    measured: figures that a budget limited, as in `fxprune.planning.figures`: times are in seconds.
    """

    schema: str
    kind: str
    path: str
    why_not: Mapping[str, str]
    exact: bool
    error: float | None
    norms: str
    params: Change
    bytes: Change
    macs: Change
    layers: tuple[LayerChange, ...]
    reasons: tuple[str, ...]
    training: tuple[str, ...]
    one_sided: tuple[str, ...]
    repair: RepairData | None
    measured: Mapping[str, Change]


class Recorded(Protocol):
    """The attributes of a record that its report uses."""

    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def why_not(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def exact(self) -> bool: ...  # noqa: D102
    @property
    def error(self) -> float | None: ...  # noqa: D102
    @property
    def norms(self) -> str: ...  # noqa: D102
    @property
    def before(self) -> Mapping[str, Shape]: ...  # noqa: D102
    @property
    def after(self) -> Mapping[str, Shape]: ...  # noqa: D102
    @property
    def cost(self) -> tuple[Cost, Cost] | None: ...  # noqa: D102
    @property
    def measured(self) -> Mapping[str, tuple[float, float]]: ...  # noqa: D102
    @property
    def reasons(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def training(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def one_sided(self) -> tuple[Any, ...]: ...  # noqa: D102
    @property
    def repair(self) -> Repaired | None: ...  # noqa: D102


def analysis_data(findings: Findings) -> AnalysisData:
    """The contents of the report of an analysis."""
    cost = cost_of(findings)
    costs = per_channel(findings)
    groups = tuple(
        GroupData(
            g.name,
            g.kind,
            g.size,
            costs[g.number].params,
            costs[g.number].macs,
            g.exact,
            g.reasons,
            tuple(MemberData(m.parameter, m.dim, m.role) for m in g.members),
        )
        for g in findings.groups
    )
    return AnalysisData(
        SCHEMA,
        "analysis",
        type(findings.model).__name__,
        findings.captured.path,
        cost.params,
        cost.bytes,
        cost.macs,
        cost.at_least,
        cost.uncounted,
        groups,
        _locked(findings),
        layers_of(findings, cost),
        findings.notes,
    )


def _locked(findings: Findings) -> tuple[LockedData, ...]:
    macs = withheld(findings)
    numbers = {id(event): number for number, event in enumerate(findings.events)}
    found = []
    for locked in findings.locked:
        event = locked.event
        file, _, line = event.source.rpartition(":")
        known = bool(file) and line.isdigit()
        found.append(
            LockedData(
                event.op,
                event.module,
                event.node,
                file if known else None,
                int(line) if known else None,
                event.why,
                locked.parameters,
                macs.get(numbers[id(event)], 0),
                tuple(HeldData(parameter, dim, slots) for (parameter, dim), slots in locked.slots.items()),
            )
        )
    return tuple(found)


def layers_of(findings: Findings, cost: Cost) -> tuple[LayerData, ...]:
    """Every module that owns a tensor or multiplies, in the order of the model.

    A tensor of several modules is shown with each, and its parameters are counted with the first.
    """
    shapes: dict[str, dict[str, Shape]] = {}
    for found in findings.subject.tensors.unique:
        for name, owner in ((found.name, found.owner), *((other, other.rpartition(".")[0]) for other in found.others)):
            shapes.setdefault(owner, {})[name.rpartition(".")[2]] = tuple(found.tensor.shape)
    modules = dict(findings.model.named_modules(remove_duplicate=False))
    return tuple(
        LayerData(
            path,
            type(modules[path]).__name__ if path in modules else "",
            cost.layers[path].params,
            cost.layers[path].macs,
            shapes.get(path, {}),
        )
        for path in cost.layers
    )


def record_data(record: Recorded) -> RecordData:
    """The contents of the report of a record."""
    before, after = record.cost or (None, None)
    tensors: dict[str, list[TensorChange]] = {}
    for name, shape in record.before.items():
        path, _, leaf = name.rpartition(".")
        tensors.setdefault(path, []).append(TensorChange(leaf, tuple(shape), _shape(record.after.get(name))))
    names = dict.fromkeys((*(before.layers if before else ()), *(after.layers if after else ()), *tensors))
    layers = tuple(LayerChange(name, *_changes(before, after, name), tuple(tensors.get(name, ()))) for name in names)
    return RecordData(
        SCHEMA,
        "record",
        record.path,
        dict(record.why_not),
        record.exact,
        record.error,
        record.norms,
        Change(before.params if before else None, after.params if after else None),
        Change(before.bytes if before else None, after.bytes if after else None),
        Change(before.macs if before else None, after.macs if after else None),
        layers,
        record.reasons,
        record.training,
        tuple(map(str, record.one_sided)),
        repair_data(record.repair),
        {name: Change(*pair) for name, pair in record.measured.items()},
    )


def _shape(shape: Shape | None) -> Shape | None:
    return None if shape is None else tuple(shape)


def _changes(before: Cost | None, after: Cost | None, name: str) -> tuple[Change, Change]:
    old = before.layers.get(name, LayerCost()) if before else None
    new = after.layers.get(name, LayerCost()) if after else None
    return (
        Change(old.params if old else None, new.params if new else None),
        Change(old.macs if old else None, new.macs if new else None),
    )
