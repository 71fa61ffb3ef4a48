"""The record: how a small model was made, kept with the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from fxprune.costs import Cost
from fxprune.errors import FxpruneError, PlanError
from fxprune.planning.plan import Plan
from fxprune.report import record_data, view
from fxprune.report.views import checked

_KEY = "fxprune_record"


@dataclass(frozen=True)
class Record:
    """The history of a small model: its plan, its path, its proof.

    path: the path that made it: "fx", "eager", "export" or "hooks".
    why_not: path -> why it was not taken, for those that were tried before.
    removed: original parameter or buffer -> {dimension: sorted indices, in the original's numbering}.
    exact: whether the small model equals the masked original; else some statistic is taken over fewer channels.
    before, after: tensor -> shape, of every parameter and buffer.
    reasons: what stayed although it was asked for, which statistics changed, which unused parameters were left out.
    training: the modules that were in training mode when the graph was traced; "" is the model.
    error: the relative error against the reference, None where it was not compared.
    norms: "preserve" where statistics count the original width as far as that is possible, else "kept".
    plan: what was done, with every size that was recounted; it can be saved, and made again on other weights.
    cost: of the original and of the small model, None where it was not counted.
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

    def then(self, second: Record) -> Record:
        """One record of two prunings: from the original of this one to the model of `second`, which was pruned again.

        Raises `PlanError` where `second` is for another model, or treats statistics otherwise.
        """
        if self.norms != second.norms:
            why = f'the first was made with norms="{self.norms}", the second with "{second.norms}"'
            raise PlanError("the two records are not one", why=why, do="prune both times with the same norms")
        plan = self.plan.then(second.plan)
        return Record(
            plan.path,
            plan.removed,
            self.exact and second.exact,
            self.before,
            second.after,
            plan.reasons + tuple(r for r in (*self.reasons, *second.reasons) if r not in plan.reasons),
            self.training,
            None,
            {**self.why_not, **second.why_not},
            self.norms,
            plan,
            (self.cost[0], second.cost[1]) if self.cost and second.cost else None,
        )

    @property
    def zeroed(self) -> Mapping[str, Mapping[int, list[int]]]:
        """The slots that the reference sets to zero: the removed ones, of weights alone where constants were folded."""
        return self.removed if self.plan.zeroed is None else self.plan.zeroed

    @property
    def params(self) -> tuple[int, int]:
        """Elements of all tensors before and after."""
        return sum(map(math.prod, self.before.values())), sum(map(math.prod, self.after.values()))

    def report(self, format: str = "text") -> str:
        """Each layer before and after, the totals, the path, the proof and the notes: docs/report.md.

        format: "text", "markdown" or "json". Raises `InputError` for any other.
        """
        checked(format)
        return view(record_data(self), format)


def record(small: nn.Module) -> Record:
    """The record of a model that `transform` returned (or of a deep copy of it).

    Raises `FxpruneError` for any other model.
    """
    found: Any = small.meta.get(_KEY) if isinstance(small, fx.GraphModule) else small.__dict__.get(_KEY)
    if not isinstance(found, Record):
        raise FxpruneError(
            f"this {type(small).__name__} has no record",
            why="it was not made by transform",
            do="pass what transform returned",
        )
    return found


def attach(small: nn.Module, made: Record) -> None:
    """Keep the record with the model; deep copies keep it too."""
    if isinstance(small, fx.GraphModule):
        small.meta[_KEY] = made
    else:
        small.__dict__[_KEY] = made
