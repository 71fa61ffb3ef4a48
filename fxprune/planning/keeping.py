"""Keeping channels, one after the other, until the numbers that forward computes from settings and sizes fit again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fxprune.analysis.findings import Findings
from fxprune.analysis.setting_values import Solved, solve_part
from fxprune.analysis.settings import Setting
from fxprune.analysis.uses import NumberUse
from fxprune.channels.groups import Bools, Ints, Removal

Scores = npt.NDArray[np.float64]
Part = Sequence[NumberUse]
"""Uses that share settings."""
TRIALS = 8
"""The most channels of a group that are tried one by one; they may have unlike numbers of slots."""


class Keeping:
    """Keeping channels until the uses of some parts hold.

    removed: flags of channels, cleared in place. given: the values of some settings, where they are decided.
    candidates: the numbers of the channels that the parts count, ascending.
    """

    def __init__(self, findings: Findings, parts: Sequence[Part], removed: Bools, scores: Scores) -> None:
        self.findings, self.parts, self.removed, self.scores = findings, parts, removed, scores
        self.given: Mapping[Setting, Fraction] = {}
        counted = [dict.fromkeys(vector.representative for use in part for vector in use.regions) for part in parts]
        own = {v: findings.solution.channels_among([v]) for vectors in counted for v in vectors}
        self.candidates = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *own.values()]))
        rows = {vector: np.isin(self.candidates, channels) for vector, channels in own.items()}
        none = np.zeros(len(self.candidates), dtype=bool)  # a use may count no region
        self.regions = np.stack([none, *rows.values()])
        self.reach = np.stack([np.any([none, *(rows[vector] for vector in vectors)], axis=0) for vectors in counted])
        self.missed = [self.distance(part) for part in parts]

    def run(self) -> None:
        """Keep channels until the uses hold."""
        while any(self.missed) and self.removed[self.candidates].any():
            kept = self._step(sum(self.missed, Fraction(0)))
            self.removed[kept] = False
            self.missed = [
                self.distance(part) if reached else missed
                for part, missed, reached in zip(self.parts, self.missed, self.reached(kept), strict=True)
            ]

    def distance(self, part: Part) -> Fraction:
        """The sum of the distances of the uses of a part from holding."""
        return self.solved(part).missed

    def solved(self, part: Part) -> Solved:
        """The values of the settings of a part with the channels that are kept now."""
        removal = Removal(self.findings.solution, self.removed)
        return solve_part(part, self.findings.uses.before, removal, self.given)

    def left(self) -> Fraction:
        """The distance of all parts from holding, with the channels that are kept now."""
        return sum((self.distance(part) for part in self.parts), Fraction(0))

    def reached(self, channels: Ints) -> list[bool]:
        """For each part, whether it counts some of these channels."""
        places = self._places(channels)
        return [bool(row[places].any()) for row in self.reach]

    def _places(self, channels: Ints) -> Ints:
        """The places of some candidates among all of them."""
        return np.searchsorted(self.candidates, channels)

    def kinds(self) -> Iterator[Ints]:
        """The removed channels that could be kept, those of one group that are counted at the same places together.

        Those with the best scores come first.
        """
        gone = self.candidates[self.removed[self.candidates]]
        groups = self.findings.solution.groups_of(gone)
        for group in np.unique(groups):
            own = gone[groups == group]
            own = own[np.argsort(-self.scores[own], kind="stable")]
            _, kinds = np.unique(self.regions[:, self._places(own)], axis=1, return_inverse=True)
            yield from (own[kinds.reshape(-1) == kind] for kind in range(kinds.max() + 1))

    def _step(self, missed: Fraction) -> Ints:
        """The channels to keep next: some of the kind that helps most. missed: the distance before."""
        after, channels = min(self._trials(missed), key=lambda trial: trial[0])
        gain = missed - after
        count = int(missed / gain) if gain > 0 else 1
        together = count > 1 and self._missed_with(channels[:count]) < after
        return channels[: count if together else 1]

    def _trials(self, missed: Fraction) -> Iterator[tuple[Fraction, Ints]]:
        """For each kind of channels: the distance that is left with one more, and these channels, that one first.

        It is the one with the best score, unless another one helps and that one does not.
        """
        for ranked in self.kinds():
            found = (missed, ranked)
            for first in range(min(TRIALS, len(ranked))):
                trial = (self._missed_with(ranked[first : first + 1]), np.roll(ranked, -first))
                if first == 0 or trial[0] < missed:
                    found = trial
                if found[0] < missed:
                    break
            yield found

    def _missed_with(self, channels: Ints) -> Fraction:
        """The distance that would be left if these channels stayed too."""
        self.removed[channels] = False
        parts = zip(self.parts, self.missed, self.reached(channels), strict=True)
        left = (self.distance(part) if reached else missed for part, missed, reached in parts)
        total = sum(left, Fraction(0))
        self.removed[channels] = True
        return total
