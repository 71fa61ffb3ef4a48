"""Scopes: how a budget is spread over the groups.

Each of them turns a level in [0, 1] into the number of channels that each group loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune.analysis.findings import Findings, Group
from fxprune.costs.marginal import per_channel
from fxprune.errors import PlanError, nearest
from fxprune.planning.keeping import Scores


@dataclass(frozen=True)
class Units:
    """The way to compare scores of different groups.

    comparable: True if they do as they are; else they are divided by the mean of their group.
    costs: a function that gives the cost of a channel of each group, by its number, for scores that are changes of the
        loss: what a channel is worth is divided by what it frees. None for other scores.
    """

    comparable: bool = False
    costs: Callable[[], Mapping[int, float]] | None = None

    def values(self, groups: Sequence[Group], scores: Scores) -> list[Scores]:
        """The scores of each group, so that they compare."""
        costs = {} if self.costs is None else self.costs()
        return [
            scores[group.channels]
            / ((1.0 if self.comparable else scores[group.channels].mean() or 1.0) * costs.get(group.number, 1.0))
            for group in groups
        ]


def costs_of(findings: Findings, keys: Iterable[str]) -> Callable[[], Mapping[int, float]]:
    """A function that gives the cost of one channel of each group.

    keys: the keys of the budgets. The cost is in parameters if all of them are about these, else in multiply-adds.
    """
    by_params = set(keys) <= {"params", "bytes"}

    def costs() -> Mapping[int, float]:
        found = per_channel(findings)
        if by_params or any(one.macs is None for one in found):
            return {number: float(max(one.params, 1)) for number, one in enumerate(found)}
        return {number: float(max(one.macs or 1, 1)) for number, one in enumerate(found)}

    return costs


@dataclass(frozen=True)
class Spread:
    """The channels that the groups may lose.

    groups: those that lose channels. most: the number of a group -> the most channels that it may lose.
    kept: a function from a group's size and the share that goes to the number of channels that stay.
    units: how the scores of different groups compare.
    """

    groups: Sequence[Group]
    most: dict[int, int]
    kept: Callable[[int, float], int]
    units: Units = Units()

    def count(self, group: Group, share: float) -> int:
        """The number of channels that a group loses, if this share of it goes."""
        return min(group.size - self.kept(group.size, min(share, 1.0)), self.most[group.number])


CountsByLevel = Callable[[float], dict[int, int]]

ScopeFunction = Callable[[Findings, Spread, Scores], CountsByLevel]

SCOPES: dict[str, ScopeFunction] = {}
"""The scopes by name. A function gives the counts of every level."""

SEARCH = "search"
"""The scope that measures small models; `transform` replaces it by the plan that it finds."""


def scope(name: str) -> Callable[[ScopeFunction], ScopeFunction]:
    """Put a function into `SCOPES` under this name."""

    def register(function: ScopeFunction) -> ScopeFunction:
        SCOPES[name] = function
        return function

    return register


def scope_named(name: str | ScopeFunction) -> ScopeFunction:
    """The scope of this name, or the function itself. Raises `PlanError` if there is no such name."""
    if callable(name):
        return name
    if name not in SCOPES:
        why = nearest(str(name), SCOPES)
        raise PlanError(f"there is no scope {name!r}", why=why, do=f"choose from {', '.join(SCOPES)}")
    return SCOPES[name]


@scope("local")
def local(findings: Findings, spread: Spread, scores: Scores) -> CountsByLevel:
    """Every group loses the same share."""
    return lambda level: {group.number: spread.count(group, level) for group in spread.groups}


@scope("global")
def over_all(findings: Findings, spread: Spread, scores: Scores) -> CountsByLevel:
    """The channels of all groups are ranked together.

    The score of a channel is divided by the mean of its group, which makes groups comparable, unless the criterion says
    that its scores compare already. Scores that are changes of the loss are divided by the cost of a channel; other
    scores are not, where that was measured to be harmful (docs/design.md).
    """
    return _ranked(spread, scores, [spread.groups])


@scope("isomorphic")
def isomorphic(findings: Findings, spread: Spread, scores: Scores) -> CountsByLevel:
    """Groups of the same structure are ranked together; each such set loses the same share.

    Fang et al. 2024, "Isomorphic Pruning for Vision Models" (https://arxiv.org/abs/2407.04616). The structure of a
    group is the types of the modules that hold its channels, and the dimensions there.
    """
    found: dict[tuple[tuple[str, int], ...], list[Group]] = {}
    for group in spread.groups:
        parts = sorted((type(group.owner(member)).__name__, member.dim) for member in group.members)
        found.setdefault(tuple(parts), []).append(group)
    return _ranked(spread, scores, list(found.values()))


def _ranked(spread: Spread, scores: Scores, sets: Sequence[Sequence[Group]]) -> CountsByLevel:
    """The counts of each level, where the channels of a set of groups are ranked together."""
    ranked = [_order(groups, scores, spread.units) for groups in sets]

    def at(level: float) -> dict[int, int]:
        counts: dict[int, int] = {}
        for groups, order in zip(sets, ranked, strict=True):
            gone = np.bincount(order[: round(level * len(order))], minlength=len(groups))
            for group, number in zip(groups, gone.tolist(), strict=True):
                counts[group.number] = spread.count(group, number / group.size)
        return counts

    return at


def _order(groups: Sequence[Group], scores: Scores, units: Units) -> npt.NDArray[np.int64]:
    """For each channel of a set of groups the position of its group, the channel that goes first at the start."""
    values = units.values(groups, scores)
    owners = np.repeat(np.arange(len(groups)), [group.size for group in groups])
    return np.asarray(owners[np.argsort(np.concatenate(values), kind="stable")])


@scope(SEARCH)
def search(findings: Findings, spread: Spread, scores: Scores) -> CountsByLevel:
    """The scope whose counts are measured on repaired models. Raises `PlanError`: a plan alone has no data for it."""
    raise PlanError(
        'scope="search" measures repaired models',
        why="a plan that is made from an analysis has no data to repair and to measure on",
        do='call fxprune.transform(model, inputs, keep=..., scope="search", repair=batches)',
    )
