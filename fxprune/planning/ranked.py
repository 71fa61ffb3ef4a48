"""Groups whose channels are ranked by scores, and the plans that remove the lowest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fxprune.analysis.findings import Findings, Group
from fxprune.channels.groups import Bools, Ints
from fxprune.planning.enough import keep_enough
from fxprune.planning.fitting import Widths
from fxprune.planning.from_first import FromFirst
from fxprune.planning.keeping import Scores
from fxprune.planning.limits import Limits
from fxprune.planning.scopes import ScopeFunction, Spread, Units, scope_named
from fxprune.planning.shared_settings import EQUAL_COUNTS, keep_equal_widths
from fxprune.planning.uniform import EqualWidths


@dataclass(frozen=True, eq=False)
class Ranked:
    """The groups that lose channels, with their scores.

    fixed: the number of a group -> how many channels go, for groups whose widths are given.
    equal: the sets of groups that keep equally many channels.
    units: how the scores of different groups compare.
    do: the next step where widths that are one number cannot have what was asked for: see `keep_equal_widths`.
    """

    findings: Findings
    scores: Scores
    groups: Sequence[Group]
    fixed: Mapping[int, int]
    equal: EqualWidths
    limits: Limits
    units: Units
    do: str = EQUAL_COUNTS

    def spread(self, multiple: int) -> Spread:
        """The channels that the groups may lose, if the widths are multiples of a number."""
        limits = replace(self.limits, round_to=multiple)
        most = {group.number: group.size - limits.least(group.size) for group in self.groups}
        return Spread(self.groups, most, limits.kept, self.units)

    def by_ratio(self, shares: Mapping[Group, float], multiple: int) -> tuple[Bools, tuple[str, ...]]:
        """The channels that are removed, if a share of each group goes, and the reasons for others that stay."""
        spread = self.spread(multiple)
        gone = {group.number: spread.count(group, share) for group, share in shares.items()}
        return self.flags(self.equal.merged(gone, multiple))

    def flags(self, gone: Mapping[int, int]) -> tuple[Bools, tuple[str, ...]]:
        """The same, if so many of each group go. gone: one entry for each set of groups that keep equally many."""
        return self.equal.settled(self.findings.solution, self._flags, self.fixed, gone)

    def _flags(self, counts: Mapping[int, int]) -> tuple[Bools, tuple[str, ...]]:
        """The channels with the lowest scores, so many of each group, without those that the model needs.

        Returns with them the reasons why these stay.
        """
        removed = self.findings.solution.no_channel()
        for number, drop in counts.items():
            if drop:
                removed[self._ascending(number)[:drop]] = True
        reasons = keep_enough(self.findings, removed, self.scores)
        return removed, (*reasons, *keep_equal_widths(self.findings, removed, self.scores, self.do))

    def _ascending(self, number: int) -> Ints:
        """The channels of a group, those with the lowest scores first."""
        if number not in self._sorted:
            channels = self.findings.groups[number].channels
            self._sorted[number] = channels[np.argsort(self.scores[channels], kind="stable")]
        return self._sorted[number]

    @cached_property
    def _sorted(self) -> dict[int, Ints]:
        """The results of `_ascending`."""
        return {}

    def widths(self, scope: str | ScopeFunction, multiple: int) -> Widths:
        """The widths of a plan by its level."""
        at = scope_named(scope)(self.findings, self.spread(multiple), self.scores)
        why = replace(self.limits, round_to=multiple).why(group.size for group in self.groups)
        widths = Widths(lambda level: self.equal.merged(at(level), multiple), self.flags, multiple, why)
        if not isinstance(scope, FromFirst):
            return widths
        return replace(widths, before=scope.before(self.findings), exchanges=scope.last)
