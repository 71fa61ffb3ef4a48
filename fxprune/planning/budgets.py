"""Budgets: how much of a model's cost may stay.

`keep={"macs": 0.5}` asks for a small model with at most half of the multiply-adds. A plan has one number that says how
much goes, its level. The largest model within the budget is found by bisection of the level, on costs that are counted
from the analysis alone. Where many groups lose a channel at the same level, channels come back as long as they fit.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools, Removal
from fxprune.costs import Cost
from fxprune.costs.count import cost_of
from fxprune.errors import PlanError, nearest

MEASURES: dict[str, Callable[[Cost], int | None]] = {
    "params": lambda cost: cost.params,
    "bytes": lambda cost: cost.bytes,
    "macs": lambda cost: cost.macs,
}
"""The costs that a budget can limit: name -> the figure of a cost, None if it is unknown."""

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
"""The prefixes of units in a text such as "200 MB"."""

CLOSE = 0.01
"""Channels come back until so much of the budget is left at most."""

STEPS = 40
"""The steps of the bisection; after them two levels differ by less than one channel of any group."""


@dataclass(frozen=True)
class Budget:
    """A limit of one cost. key: a name in `MEASURES`. limit: the most that may stay. full: what the model has."""

    key: str
    limit: int
    full: int

    def of(self, cost: Cost) -> int:
        """The figure of a cost that the budget limits."""
        return MEASURES[self.key](cost) or 0

    def __str__(self) -> str:
        return f"{self.key} {self.limit:,} of {self.full:,} ({self.limit / self.full:.1%})"


def budgets_of(whole: Cost, keep: Any) -> tuple[Budget, ...]:
    """The budgets of a request.

    whole: the cost of the model.
    keep: name of a measure -> what stays. A share is a float in (0, 1]; a figure is an integer above 1, or a text
        with a unit, such as "1.5 GMACs", "200 MB" or "3M" (k, M, G, T are powers of 1000).

    Raises `PlanError` for a request that makes no sense, and for a measure that is unknown for this model.
    """
    if not isinstance(keep, Mapping) or not keep:
        raise PlanError("keep must name what is kept", why=f"got {keep!r}", do='write for example keep={"macs": 0.5}')
    return tuple(_budget(key, value, whole) for key, value in keep.items())


def above(before: Cost, after: Cost, keep: Any) -> list[Budget]:
    """The budgets that a small model does not meet. before, after: the costs of the original and of the small model."""
    return [budget for budget in budgets_of(before, keep) if budget.of(after) > budget.limit]


def _budget(key: Any, value: Any, whole: Cost) -> Budget:
    at = f"keep={{{key!r}: {value!r}}}"
    if key not in MEASURES:
        hint = nearest(str(key), MEASURES)
        raise PlanError("there is no such budget", at=at, why=hint, do=f"choose from {', '.join(MEASURES)}")
    full = MEASURES[key](whole)
    if full is None:
        raise PlanError(
            f"the {key} of this model are not known",
            at=at,
            why=f"nothing counts {', '.join(whole.uncounted[:3])}",
            do="give the budget as params or bytes, or register a rule for the operation",
        )
    limit = _limit(value, full, at)
    if limit > full:
        raise PlanError("the budget is above the model itself", at=at, why=f"the model has {full:,} {key}")
    return Budget(key, limit, full)


def _limit(value: Any, full: int, at: str) -> int:
    """The figure that a value means. Raises `PlanError` for one that could mean a share and a figure."""
    if isinstance(value, str):
        return _figure(value, at)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and not whole:
        if not 0 < float(value) <= 1:
            raise PlanError("a share must be in (0, 1]", at=at, do="give an absolute figure as an integer")
        return math.floor(float(value) * full)
    if not whole or value < 1:
        raise PlanError("a budget is a share, an integer or a text with a unit", at=at, do="write 0.5, 3000000 or 3M")
    if value == 1:
        raise PlanError("1 is no budget", at=at, why="an integer is an absolute figure", do="write 1.0 for all")
    return int(value)


def _figure(text: str, at: str) -> int:
    """The figure in a text such as "200 MB". A small number without a unit is refused: it looks like a share."""
    found = re.fullmatch(r"\s*([0-9][0-9_,]*\.?[0-9]*)\s*([kmgt]?)(b|bytes|macs|params)?\s*", text.lower())
    number = float(re.sub("[_,]", "", found[1])) if found else 0.0
    if found is None or (number <= 1 and not found[2] and not found[3]):
        do = 'write for example "200 MB", "1.5 GMACs" or "3M"; a share is a number, 0.5'
        raise PlanError("the text is no figure", at=at, do=do)
    return math.floor(number * UNITS[found[2]])


Counts = Mapping[int, int]
"""Number of a group -> how many of its channels go."""


@dataclass(frozen=True)
class Widths:
    """The counts of a plan, by its level.

    at: a function from a level in [0, 1] to the counts; more go at a higher level.
    flags: a function from counts to the removed channels, as flags, with everything that a model needs to keep.
    step: the number of channels by which a count changes.
    """

    at: Callable[[float], Counts]
    flags: Callable[[Counts], tuple[Bools, tuple[str, ...]]]
    step: int = 1


def within(findings: Findings, budgets: Sequence[Budget], widths: Widths) -> tuple[Bools, tuple[str, ...]]:
    """The removed channels of the largest model within all budgets, and the reasons for what stays.

    If no level is within them, the smallest model is taken, and a reason says how near it comes.
    """
    search = _Search(findings, budgets, widths)
    low, high = 0.0, 1.0
    if search.fits(widths.at(low)):
        return widths.flags(widths.at(low))
    if not search.fits(widths.at(high)):
        removed, reasons = widths.flags(widths.at(high))
        return removed, (*reasons, *search.missed(removed))
    for _ in range(STEPS):
        middle = (low + high) / 2
        if search.fits(widths.at(middle)):
            high = middle
        else:
            low = middle
        if widths.at(low) == widths.at(high):
            break
    return widths.flags(search.filled(dict(widths.at(high)), widths.at(low)))


class _Search:
    """Costs of plans, by their counts."""

    def __init__(self, findings: Findings, budgets: Sequence[Budget], widths: Widths) -> None:
        self.findings, self.budgets, self.widths = findings, budgets, widths
        self._known: dict[tuple[tuple[int, int], ...], Cost] = {}

    def cost(self, counts: Counts) -> Cost:
        """The cost of the model that these counts leave."""
        key = tuple(sorted(counts.items()))
        if key not in self._known:
            removed, _ = self.widths.flags(counts)
            self._known[key] = cost_of(self.findings, Removal(self.findings.solution, removed))
        return self._known[key]

    def fits(self, counts: Counts) -> bool:
        """True if all budgets hold."""
        cost = self.cost(counts)
        return all(budget.of(cost) <= budget.limit for budget in self.budgets)

    def close(self, counts: Counts) -> bool:
        """True if one of the budgets is nearly used up."""
        cost = self.cost(counts)
        return any(budget.of(cost) >= (1 - CLOSE) * budget.limit for budget in self.budgets)

    def filled(self, counts: dict[int, int], wanted: Counts) -> Counts:
        """The counts with channels that come back, as long as all budgets hold.

        First the groups that lose fewer at the next lower level get what they have there; then each group in turn gets
        one step more, those first that have lost the largest share.
        """
        for number in counts:
            if wanted[number] < counts[number]:
                self._try(counts, number, wanted[number])
        for _ in range(len(counts)):
            came_back = [self._try(counts, *step) for step in self._steps(counts)]
            if self.close(counts) or not any(came_back):
                break
        return counts

    def _steps(self, counts: Counts) -> Iterator[tuple[int, int]]:
        sizes = {group.number: group.size for group in self.findings.groups}
        for number in sorted(counts, key=lambda number: -counts[number] / sizes[number]):
            if counts[number] >= self.widths.step:
                yield number, counts[number] - self.widths.step

    def _try(self, counts: dict[int, int], number: int, count: int) -> bool:
        """Set one count if all budgets hold with it. Returns True if they do, and something comes back."""
        if self.close(counts):
            return False
        changed = {**counts, number: count}
        before, after = self.cost(counts), self.cost(changed)
        if not self.fits(changed) or all(budget.of(before) == budget.of(after) for budget in self.budgets):
            return False
        counts[number] = count
        return True

    def missed(self, removed: Bools) -> Iterator[str]:
        """Sentences on the budgets that a plan does not meet: how near it comes, and what holds it."""
        cost = cost_of(self.findings, Removal(self.findings.solution, removed))
        held = [str(locked) for locked in self.findings.locked[:3]]
        for budget in self.budgets:
            if budget.of(cost) > budget.limit:
                share = f"{budget.of(cost):,} ({budget.of(cost) / budget.full:.1%})"
                why = "; every group has lost the most that it may (max_ratio, min_channels)"
                why += f"; held: {'; '.join(held)}" if held else ""
                yield f"the budget is not met: {budget}; {share} stay{why}"
