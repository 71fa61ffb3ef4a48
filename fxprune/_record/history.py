"""The record of a small model: how it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fxprune._record.repaired import Repair
from fxprune.analysis.findings import Findings
from fxprune.analysis.held_back import HeldBack, held_by_both
from fxprune.arguments import checks_arguments
from fxprune.costs import Cost
from fxprune.errors import PlanError
from fxprune.planning.plan import Plan
from fxprune.proof.one_sided import OneSided
from fxprune.report import record_data, view
from fxprune.report.html import Curves, record_page
from fxprune.report.layer_graph import LayerFlow
from fxprune.report.text import record_table
from fxprune.report.views import page_wanted


@dataclass(frozen=True)
class Record:
    """The history of a small model: its plan, its path, its proof.

    path: the path that made it: "fx", "eager", "export" or "hooks".
    removed: original parameter or buffer -> {dimension: sorted indices, in the original's numbering}.
    exact: True if the small model equals the masked original; False if a statistic is taken over fewer channels.
    before, after: name of every parameter and buffer -> its shape, in the original and in the small model.
    reasons: sentences: which channels stayed although their removal was requested, which statistics changed, which
        unused parameters were left out.
    training: the paths of the modules that were in training mode during the analysis; "" is the model.
    error: the relative error against the reference, None if it was not compared. Of several steps in place, each of
        which was compared with the model before it, the largest one.
    why_not: name of a path that was tried before -> why it was not taken.
    norms: "preserve" or "kept", as in `transform`.
    plan: the plan that was applied, with all recounted sizes. It can be saved, and applied to other weights.
    cost: the cost of the original and of the small model, None if it was not counted.
    compared: how many numbers that depend on what was removed the proof has compared, None if there was no proof.
    one_sided: the operations that did not run equally often in the original and in the small model, so that the proof
        has not compared their results. Such an operation is no fault by itself.
    methods: the names of the other methods that were analysed, cut and compared like forward.
    repair: what `fxprune.repair` did, None without a repair. `error` and `compared` are those of before.
    measured: name of a measure that a budget limited (in seconds for latencies, else a number) -> its figure for the
        original and for the small model.
    weights: a checksum of the small model's weights before it was repaired or trained, "" if it is unknown.
    steps: the number of steps that it joins; see `then`.
    layers_gone: path of a list of layers -> the positions of those that are gone, where the small model counts the
        others from 0 (uniform="config" with drop). All names in the record and in the plan are those of the original.
    flow: the layers of the original and what runs before what, for the page; None in a record of an old file.
    held: the channels that an analysis would let go and that stay, since code could not be rewritten: for the page.
    """

    path: str
    removed: Mapping[str, Mapping[int, list[int]]]
    exact: bool
    before: Mapping[str, tuple[int, ...]]
    after: Mapping[str, tuple[int, ...]]
    reasons: tuple[str, ...] = field(default=())
    training: tuple[str, ...] = field(default=())
    error: float | None = None
    why_not: Mapping[str, str] = field(default_factory=dict)
    norms: str = "kept"
    plan: Plan = field(default_factory=lambda: Plan({}), repr=False)
    cost: tuple[Cost, Cost] | None = None
    compared: int | None = None
    one_sided: tuple[OneSided, ...] = ()
    methods: tuple[str, ...] = ()
    repair: Repair | None = None
    weights: str = ""
    measured: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    steps: int = 1
    layers_gone: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    flow: LayerFlow | None = field(default=None, repr=False)
    held: tuple[HeldBack, ...] = field(default=(), repr=False)

    @checks_arguments()
    def then(self, second: Record) -> Record:
        """One record for a model that was pruned twice: from the original of this one to the small model of `second`.

        Raises `PlanError` if `second` is for another model, or if the two have different `norms`.
        """
        if self.norms != second.norms:
            why = f'the first was made with norms="{self.norms}", the second with "{second.norms}"'
            at, do = "Record.then", "prune both times with the same norms"
            raise PlanError("the two records are not one", at=at, why=why, do=do)
        if self.layers_gone:
            why = "the small model counts its layers from 0, so the second plan has other names than the first"
            raise PlanError("the two records are not one", why=why, do="keep both, and apply their plans in turn")
        plan = self.plan.then(second.plan)
        return Record(
            plan.path,
            plan.removed,
            self.exact and second.exact,
            self.before,
            second.after,
            tuple(dict.fromkeys((*plan.reasons, *self.reasons, *second.reasons))),
            self.training,
            None,
            {**self.why_not, **second.why_not},
            self.norms,
            plan,
            (self.cost[0], second.cost[1]) if self.cost and second.cost else None,
            layers_gone=second.layers_gone,
            measured={k: (v[0], second.measured[k][1]) for k, v in self.measured.items() if k in second.measured},
            methods=tuple(name for name in self.methods if name in second.methods),
            repair=self.repair if second.repair is None else second.repair.following(self.repair),
            weights=second.weights,
            steps=self.steps + second.steps,
            flow=self.flow,
            held=held_by_both(self.held, second.held, second.removed),
        )

    @property
    def zeroed(self) -> Mapping[str, Mapping[int, list[int]]]:
        """The slots that the reference sets to zero: all removed ones, or those of weights if constants were folded.

        Branches that went whole are in `plan.dropped` instead. The reference adds zeros in their place.
        """
        return self.removed if self.plan.zeroed is None else self.plan.zeroed

    @property
    def params(self) -> tuple[int, int]:
        """The number of parameters, before and after: elements, those of a tied tensor once, without buffers.

        In a record without `cost`, of an old file, buffers and each name of a tied tensor count too.
        """
        if self.cost is not None:
            return self.cost[0].params, self.cost[1].params
        return sum(map(math.prod, self.before.values())), sum(map(math.prod, self.after.values()))

    @property
    def bytes(self) -> tuple[int, int] | None:
        """The bytes of parameters and buffers, before and after; None in a record without `cost`, of an old file."""
        return None if self.cost is None else (self.cost[0].bytes, self.cost[1].bytes)

    @property
    def macs(self) -> tuple[int, int] | None:
        """The multiply-adds of one forward on the example inputs, before and after.

        None where they are not known: in a record without `cost`, and where operations are not counted.
        """
        if self.cost is None or self.cost[0].macs is None or self.cost[1].macs is None:
            return None
        return self.cost[0].macs, self.cost[1].macs

    def _repr_html_(self) -> str:
        return record_table(record_data(self))

    @checks_arguments()
    def report(self, format: str = "text", *, analysis: Findings | None = None, curves: Curves | None = None) -> str:
        """A report on each layer before and after, the totals, the path, the proof and the notes: see docs/report.md.

        Args:
            format: "text", "markdown", "json", or "html", a page for a browser in one file.
            analysis: of the original, for "html": the page then has its graph, its groups and what is locked.
            curves: for "html", a result of `fxprune.sensitivity` or `fxprune.pareto`, or a list of them.

        Raises `InputError` for any other format, and `PlanError` if the analysis is of another model.
        """
        if page_wanted(format, analysis=analysis, curves=curves):
            return record_page(self, analysis, curves)
        return view(record_data(self), format)
