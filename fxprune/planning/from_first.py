"""Shares of a model that gets smaller in steps: they count from the first model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fxprune.analysis.findings import Findings
from fxprune.planning.keeping import Scores
from fxprune.planning.scopes import CountsByLevel, ScopeFunction, Spread, local, scope_named


@dataclass(frozen=True)
class FromFirst:
    """A scope whose shares are shares of the groups of the first model. It is called on the model of each step.

    So a narrow group loses a channel when its turn comes: of 4 channels, a tenth in each step would be none, step by
    step. And no group loses more than the largest share in all steps together.

    sizes: the key of a group -> its channels in the first model. max_ratio, min_channels: as for `transform`.
    scope: the name of a scope, or a scope itself. last: True for the last step, which comes near to the budgets. Those
    before it keep to the common share: an exchange for each small step would take wide groups alone, step by step.
    """

    sizes: Mapping[str, int]
    max_ratio: float
    min_channels: int
    scope: str | ScopeFunction
    last: bool = True

    def before(self, findings: Findings) -> dict[int, int]:
        """Number of a group -> its channels that are gone."""
        return {group.number: max(self.sizes.get(group.key, 0) - group.size, 0) for group in findings.groups}

    def __call__(self, findings: Findings, spread: Spread, scores: Scores) -> CountsByLevel:
        """The counts of each level."""
        first = {
            group.number: group.size + gone
            for group, gone in zip(findings.groups, self.before(findings).values(), strict=True)
        }
        most = {
            group.number: max(min(spread.most[group.number], group.size - self._least(spread, first[group.number])), 0)
            for group in spread.groups
        }
        spread = replace(spread, most=most)
        scope = scope_named(self.scope)
        if scope is not local:
            return scope(findings, spread, scores)

        def at(level: float) -> dict[int, int]:
            counts = {group.number: group.size - spread.kept(first[group.number], level) for group in spread.groups}
            return {number: min(max(count, 0), most[number]) for number, count in counts.items()}

        return at

    def _least(self, spread: Spread, size: int) -> int:
        """The fewest channels that stay of a group that had so many."""
        return max(spread.kept(size, self.max_ratio), min(self.min_channels, size))
