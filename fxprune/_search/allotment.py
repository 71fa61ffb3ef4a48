"""Allotments: how a budget is spread over groups, and by which criterion each of them is ranked."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fxprune._search.candidates import KeptScores
from fxprune.analysis.findings import Findings, Group
from fxprune.errors import PlanError
from fxprune.planning.keeping import Scores
from fxprune.planning.scopes import CountsByLevel, Spread

LIGHTEST, HEAVIEST = 0.02, 50.0
"""The bounds of a weight."""


@dataclass(frozen=True)
class Ranking:
    """The order of a group's channels: a criterion, by its position, and a seed that shuffles its ranks; 0 does not."""

    criterion: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Allotment:
    """A way to spread a budget.

    weights: number of a group -> the power to which the share that stays is raised: of a group of weight 2 the square
    of the common share stays. The weight of the others is 1, which is the even ratio.
    rankings: number of a group -> its ranking; the first criterion for the others.
    """

    weights: Mapping[int, float] = field(default_factory=dict)
    rankings: Mapping[int, Ranking] = field(default_factory=dict)

    def counts(self, findings: Findings, spread: Spread, scores: Scores) -> CountsByLevel:
        """The counts of each level: a scope as in `fxprune.planning.scopes`."""

        def at(level: float) -> dict[int, int]:
            stays = {group.number: (1 - level) ** self.weights.get(group.number, 1.0) for group in spread.groups}
            return {group.number: spread.count(group, 1 - stays[group.number]) for group in spread.groups}

        return at


SHUFFLE = 0.3
"""The standard deviation that a seed adds to ranks from 0 to 1."""


class MixedScores:
    """An importance in which each group has its ranking. criteria: the importances that the rankings choose from."""

    comparable = False

    def __init__(self, criteria: Sequence[KeptScores], rankings: Mapping[int, Ranking]) -> None:
        self.criteria, self.rankings = criteria, rankings

    def __call__(self, group: Group) -> npt.NDArray[np.float64]:
        """One score per channel of the group: its rank, from 0 to 1."""
        ranking = self.rankings.get(group.number, Ranking())
        scores = self._scores(group, ranking.criterion)
        ranks = np.argsort(np.argsort(scores, kind="stable"), kind="stable") / max(len(scores), 1)
        if ranking.seed:
            noise = np.random.default_rng([ranking.seed, group.number]).standard_normal(len(scores))
            ranks = ranks + SHUFFLE * noise
        return np.asarray(ranks, dtype=np.float64)

    def _scores(self, group: Group, criterion: int) -> npt.NDArray[np.float64]:
        """The scores of a criterion; those of the first one for a group that it cannot rank."""
        try:
            return self.criteria[criterion](group)
        except PlanError:
            if not criterion:
                raise
            return self.criteria[0](group)


def like(counts: Mapping[int, int], groups: Sequence[Group]) -> dict[int, float]:
    """The weights of an allotment that spreads a budget as these counts do. counts: group -> how many channels stay."""
    kept = {group.number: counts[group.number] / group.size for group in groups}
    logs = {number: math.log(max(share, 1e-3)) for number, share in kept.items()}
    mean = sum(logs.values()) / max(len(logs), 1)
    return {number: _bounded(value / mean) if mean else 1.0 for number, value in logs.items()}


def moved(start: Allotment, numbers: Sequence[int], criteria: int, size: float, draw: random.Random) -> Allotment:
    """Another allotment, in which one to three groups are spread or ranked otherwise.

    numbers: of the groups. criteria: how many there are. size: the standard deviation of the change of a weight's
    logarithm. draw: gives the random numbers.
    """
    weights, rankings = dict(start.weights), dict(start.rankings)
    for number in draw.sample(list(numbers), min(draw.choice((1, 1, 2, 3)), len(numbers))):
        if draw.random() < 0.6 and len(numbers) > 1:
            weights[number] = _bounded(weights.get(number, 1.0) * math.exp(draw.gauss(0, size)))
        else:
            seed = draw.randrange(1, 2**31) if draw.random() < 0.7 else 0
            rankings[number] = Ranking(draw.randrange(criteria), seed)
    return Allotment(weights, rankings)


def _bounded(weight: float) -> float:
    return min(max(weight, LIGHTEST), HEAVIEST)
