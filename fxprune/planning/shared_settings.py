"""Settings and sizes that tie widths: channels are kept until every number that forward computes fits again.

For example, `self.head_dim` of an attention layer may be the width of queries, keys and values, and
`v.view(b, -1, heads, k.shape[-1] // heads)` makes the widths of keys and values one number. If a plan would remove more
channels from one of them than from another, some of these channels are kept. With nothing removed everything fits, so
keeping more channels always ends well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fxprune.analysis.findings import Findings
from fxprune.analysis.setting_values import Solved, solve_part, wrong_parts
from fxprune.analysis.settings import name_of
from fxprune.analysis.uses import NumberUse
from fxprune.channels.groups import Bools, Ints, Removal

Scores = npt.NDArray[np.float64]
TRIALS = 8
"""The most channels of a group that are tried one by one; they may have unlike numbers of slots."""


def keep_equal_widths(findings: Findings, removed: Bools, scores: Scores) -> tuple[str, ...]:
    """Keep more channels until all numbers that forward computes from settings and sizes fit.

    Returns a reason for each group of such numbers that did not fit.

    removed: flags of channels, cleared in place. scores: one per channel; those with the best are kept first.
    """
    reasons: dict[str, None] = {}
    kept = -1
    while kept != np.count_nonzero(removed):  # every round keeps channels, or is the last one
        kept = int(np.count_nonzero(removed))
        for part, solved in wrong_parts(findings.uses, Removal(findings.solution, removed)):
            reasons[why_unequal(solved, Removal(findings.solution, removed))] = None
            _Keeping(findings, part, removed, scores).run()
    return tuple(reasons)


def why_unequal(solved: Solved, removal: Removal) -> str:
    """A sentence about numbers that do not fit: the settings, the places and what each of them needs."""
    uses: dict[NumberUse, str] = {}
    for use, value in solved.wrong:
        for setting in sorted(use.expression.settings, key=str):
            if setting in solved.deciding:
                deciding = solved.deciding[setting]
                uses.setdefault(deciding, deciding.shown(Fraction(0), removal))
        uses.setdefault(use, use.shown(value, removal))
    names = sorted({name_of(s) for use in uses for s in use.expression.settings} or map(name_of, solved.values))
    uneven = [f"{name_of(s)} would be {v}" for s, v in solved.values.items() if v.denominator != 1]
    what = f"{' and '.join(names)} is one number for several widths" if names else "sizes are one number"
    return f"{what}: they keep as many channels ({'; '.join([*uses.values(), *uneven])})"


class _Keeping:
    """Keeping channels until the uses of one part hold.

    removed: flags of channels, cleared in place.
    """

    def __init__(self, findings: Findings, part: Sequence[NumberUse], removed: Bools, scores: Scores) -> None:
        self.findings, self.part, self.removed, self.scores = findings, part, removed, scores
        counted = dict.fromkeys(vector.representative for use in part for vector in use.regions)
        self.regions = np.stack([findings.solution.channels_in([vector]) for vector in counted])
        self.candidates = self.regions.any(0)

    def run(self) -> None:
        """Keep channels until the uses hold."""
        missed = self._missed()
        while missed and (self.removed & self.candidates).any():
            missed = self._step(missed)

    def _missed(self) -> Fraction:
        """The sum of the distances of the uses from holding."""
        removal = Removal(self.findings.solution, self.removed)
        return solve_part(self.part, self.findings.uses.before, removal).missed

    def _step(self, missed: Fraction) -> Fraction:
        """Keep some channels of the group that helps most. Returns the distance that is left."""
        after, channels = min(self._trials(missed), key=lambda trial: trial[0])
        gain = missed - after
        count = int(missed / gain) if gain > 0 else 1
        if count > 1 and (together := self._missed_with(channels[:count])) < after:
            self.removed[channels[:count]] = False
            return together
        self.removed[channels[0]] = False
        return after

    def _trials(self, missed: Fraction) -> Iterator[tuple[Fraction, Ints]]:
        """For each kind of channels: the distance that is left with one more, and these channels, that one first.

        It is the one with the best score, unless another one helps and that one does not.
        """
        for own in self._kinds():
            ranked = own[np.argsort(-self.scores[own], kind="stable")]
            found = (missed, ranked)
            for first in range(min(TRIALS, len(ranked))):
                trial = (self._missed_with(ranked[first : first + 1]), np.roll(ranked, -first))
                if first == 0 or trial[0] < missed:
                    found = trial
                if found[0] < missed:
                    break
            yield found

    def _kinds(self) -> Iterator[Ints]:
        """The removed channels that could be kept, those of one group that are counted at the same places together."""
        solution, gone = self.findings.solution, self.removed & self.candidates
        for group in solution.groups_with(gone):
            own = solution.in_group(group)
            own = own[gone[own]]
            _, kinds = np.unique(self.regions[:, own], axis=1, return_inverse=True)
            yield from (own[kinds.reshape(-1) == kind] for kind in range(kinds.max() + 1))

    def _missed_with(self, channels: Ints) -> Fraction:
        """The distance that would be left if these channels stayed too."""
        self.removed[channels] = False
        missed = self._missed()
        self.removed[channels] = True
        return missed
