"""Candidates: small models that are cut from one analysis, without a proof, and repaired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from fxprune._attempt import Request, Result, attempt
from fxprune._find import AnalyzeArguments
from fxprune._first_result import first_result
from fxprune._repair import RepairSettings, repaired
from fxprune._search.samples import Samples
from fxprune.analysis.findings import Findings, Group
from fxprune.capture.inputs import normalize
from fxprune.costs import Cost, cost_of
from fxprune.criteria import Importance, comparable, in_loss, scores_of
from fxprune.criteria.from_data import on_data
from fxprune.errors import InputError, PlanError, nearest
from fxprune.paths import paths_for

CHOICES = "importance ignore round_to exact seed scope counts uniform min_channels max_ratio latency_table".split()
"""The options of `transform` that say which channels go, beside how many."""

OTHERS = "also methods strict norms outputs path prefer".split()
"""The other options of `transform` that a candidate takes."""


class KeptScores:
    """An importance that computes the scores of each analysis once."""

    def __init__(self, importance: Importance, seed: int | None) -> None:
        self.importance, self.seed = importance, seed
        self.comparable, self.in_loss = comparable(importance), in_loss(importance)
        self._known: dict[Findings, npt.NDArray[np.float64]] = {}
        self._by_group: dict[Group, npt.NDArray[np.float64]] = {}

    def __call__(self, group: Group) -> npt.NDArray[np.float64]:
        """One score per channel of the group."""
        findings = group._findings
        if callable(self.importance):
            if group not in self._by_group:
                self._by_group[group] = scores_of(findings, self.importance, [group], self.seed)[group.channels]
            return self._by_group[group]
        if findings not in self._known:
            self._known[findings] = scores_of(findings, self.importance, findings.groups, self.seed)
        return self._known[findings][group.channels]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The small models of one analysis.

    model: the original; `original` if that is without some branches. analysis: of it, on the path that `transform`
    would take. request: with the options that all candidates share, and the reasons why other paths were not taken.
    samples, settings: the data and the form of a repair; None without data.
    """

    model: nn.Module
    analysis: Findings
    request: Request
    samples: Samples | None
    settings: RepairSettings
    original: nn.Module | None = None

    @property
    def whole(self) -> Cost:
        """The cost of the original."""
        return cost_of(self.analysis)

    def cut(self, *, locking: bool = True, **choices: Any) -> Result:
        """The small model of a request, without a proof.

        locking: True to keep channels that cannot be rewritten, False to raise the error. choices: what
        `fxprune.planning.choose.choose` takes.
        """
        request = replace(self.request, choices={**self.request.choices, **choices})
        return attempt(self.analysis, request, locking=locking and not request.call.strict)

    def repaired(self, made: Result) -> nn.Module:
        """The small model of a result, repaired on the samples that do not judge."""
        assert self.samples is not None
        original = self.model if self.original is None else self.original
        small, _ = repaired(made.small, original, self.samples.repairing, made.plan, self.settings)
        return small


def request_of(model: nn.Module, example_inputs: Any, options: Mapping[str, Any]) -> Request:
    """The request that all candidates share.

    options: of `transform`, those in `CHOICES` and `OTHERS`, and data and loss for an importance that needs them.

    Raises `InputError` for an option that does not exist.
    """
    known = (*CHOICES, *OTHERS, "data", "loss")
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(
            f"there is no option {unknown[0]!r}", why=nearest(unknown[0], known), do="leave it out, or correct its name"
        )
    call = AnalyzeArguments(model, example_inputs, **{name: options[name] for name in OTHERS if name in options})
    chosen = {name: options[name] for name in CHOICES if name in options}
    data, loss = options.get("data"), options.get("loss")
    importance = on_data(chosen.get("importance", "l2"), model, normalize(example_inputs), data=data, loss=loss)
    return Request(call, None, {**chosen, "importance": importance})


def candidates_of(
    request: Request, first: Mapping[str, Any], samples: Samples | None, settings: RepairSettings
) -> Candidates:
    """The candidates of a model.

    request: with the model, and the options that all candidates share. first: the choice that decides the path: the
    smallest model of all. It alone is proven.

    Raises `PlanError` if no channel can be removed, and as `transform`.
    """
    call, given = request.call, {"bias": None, "masks": None, **request.choices}
    given["importance"] = KeptScores(given.get("importance", "l2"), given.get("seed"))
    paths = paths_for(call.model, call.path, call.prefer)
    free = call.path is None and call.prefer is None
    made = first_result(replace(request, choices={**given, **first}), paths, may_give_up_class=free)
    if not made.plan:
        why = "; ".join(made.plan.reasons) or "the plan is empty"
        more = "give a smaller budget" if "keep" in first else "ask for a larger share"
        raise PlanError(
            "there is nothing to measure",
            why=f"nothing was removed: {why}",
            do=f"{more}, or let layers lose channels that can (analysis.report() lists them)",
        )
    shared = replace(request, choices=given, verify=False, why_not=made.why_not)
    return Candidates(call.model, made.analysis, shared, samples, settings)
