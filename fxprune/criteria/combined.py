"""Sums and products of criteria."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.analysis.findings import Findings, Group
from fxprune.arguments import checks_names, fits
from fxprune.criteria.scores import scores_of
from fxprune.criteria.table import GroupsImportance, Importance, comparable
from fxprune.errors import PlanError


@dataclass(frozen=True, eq=False)
class CombinedImportance(GroupsImportance):
    """A sum or a product of importances. Make it with `weighted` or `product`.

    parts: the importances, each with its weight. summed: True for a sum.
    """

    parts: tuple[tuple[Importance, float], ...]
    summed: bool

    @property
    def comparable(self) -> bool:
        """True for a product of importances whose scores compare between groups."""
        return not self.summed and all(comparable(part) for part, _ in self.parts)

    def __call__(self, group: Group) -> Tensor:
        """One score per channel of the group, float64 [group.size]."""
        return torch.from_numpy(self.of_groups(group._findings, [group], None)[group.channels])

    def of_groups(self, findings: Findings, groups: Sequence[Group], seed: int | None) -> npt.NDArray[np.float64]:
        """One score per channel of the analysis."""
        total = np.zeros(findings.solution.channels) if self.summed else np.ones(findings.solution.channels)
        for part, weight in self.parts:
            scores = scores_of(findings, part, groups, seed)
            for group in groups:
                own = scores[group.channels]
                if self.summed:
                    total[group.channels] += weight * own / (own.mean() or 1.0)
                else:
                    total[group.channels] *= own
        return total

    def each(self, function: Callable[[Importance], Importance]) -> CombinedImportance:
        """The same of what a function makes of each importance."""
        return replace(self, parts=tuple((function(part), weight) for part, weight in self.parts))


@checks_names
def weighted(weights: Mapping[Any, float]) -> CombinedImportance:
    """A weighted sum of importances: names of criteria, or callables.

        score[c] = sum over importances k of weights[k] * score_k[c] / mean over the group of score_k

    so that importances in different units count as their weights say. Weighted sums of criteria are common; of
    magnitude and Taylor terms for example in Molchanov et al. 2017 (https://arxiv.org/abs/1611.06440).

    Names that need data are measured on `data=` of `transform` or `plan`.

    Raises `PlanError` for no importances, and for weights that are no finite numbers.

    >>> import fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> plan = fxprune.analyze(net, torch.zeros(1, 2)).plan(ratio=0.5, importance=weighted({"l2": 1, "fpgm": 0.5}))
    >>> len(plan.removed["0.bias"][0])
    2
    """
    if not isinstance(weights, Mapping) or not weights:
        why = 'such as {"l2": 1, "fpgm": 0.5}'
        raise PlanError("a weighted sum needs a dict from importances to weights", why=why, do="pass at least one")
    for part, weight in weights.items():
        if not fits(weight, float) or not math.isfinite(weight):
            raise PlanError(
                "a weight must be a finite number",
                at=repr(part),
                why=f"it is {weight!r}",
                do="pass a number such as 0.5",
            )
        _check_part(part)
    return CombinedImportance(tuple((part, float(weight)) for part, weight in weights.items()), summed=True)


def product(*importances: Importance) -> CombinedImportance:
    """A product of importances: score[c] = product over importances k of score_k[c].

    Names of criteria, or callables. Names that need data are measured on `data=` of `transform` or `plan`.

    Raises `PlanError` for no importances.

    >>> import fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> group = fxprune.analyze(net, torch.zeros(1, 2)).groups[0]
    >>> product("l1", lambda group: [2, 0, 1, 1])(group)[1].item()
    0.0
    """
    if not importances:
        raise PlanError(
            "a product needs importances", why="none were given", do='pass some, such as product("l2", mine)'
        )
    for part in importances:
        _check_part(part)
    return CombinedImportance(tuple((part, 1.0) for part in importances), summed=False)


def _check_part(part: Any) -> None:
    if not isinstance(part, str) and not callable(part):
        raise PlanError(f"an importance cannot be a {type(part).__name__}", do="pass a name or a callable")
