"""A model within budgets, as near to them as is found.

A plan has one number that says how much goes, its level. The level is found by bisection, on figures that come from the
analysis. Where many groups lose a channel at the same level, channels come back as long as they fit. A latency is
predicted from measurements: some levels are measured first, and then the models that are found, until what was
predicted for one is what was measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fxprune.analysis.findings import Findings, Group
from fxprune.channels.groups import Bools, Removal
from fxprune.planning.budgets import Budget
from fxprune.planning.figures import TIMED, Figures, Meter
from fxprune.planning.held import held_after

CLOSE = 0.01
"""Channels come back until so much of the budget is left at most."""

STEPS = 40
"""The steps of the bisection; after them two levels differ by less than one channel of any group."""

TRADES = 400
"""The most exchanges between groups that are tried, times the number of groups, where much of a budget is left."""

APART = 3
"""An exchange takes from a group at most this part of the channels that it keeps at the level."""

LEVELS = (0.25, 0.5, 0.75, 1.0)
"""The levels that are measured first."""

TRIES = 5
"""The most models that are measured after these."""

ENOUGH = 0.03
"""A model that was measured is taken if so much of the budget is left at most."""

Counts = Mapping[int, int]
"""Number of a group -> how many of its channels go."""


@dataclass(frozen=True)
class Widths:
    """The counts of a plan, by its level.

    at: a function from a level in [0, 1] to the counts; more go at a higher level.
    flags: a function from counts to the removed channels, as flags, with everything that a model needs to keep.
    step: the number of channels by which a count changes.
    limits: a text that says what limits the counts.
    before: number of a group -> its channels that went in earlier steps, which count as a part of what it lost.
    exchanges: False if groups stay at their common level, where exchanges would come nearer to a budget.
    """

    at: Callable[[float], Counts]
    flags: Callable[[Counts], tuple[Bools, tuple[str, ...]]]
    step: int = 1
    limits: str = ""
    before: Mapping[int, int] = field(default_factory=dict)
    exchanges: bool = True

    def share(self, group: Group, count: int) -> float:
        """The share that a group has lost, if so many channels go."""
        before = self.before.get(group.number, 0)
        return (before + count) / (before + group.size)


def within(
    findings: Findings, budgets: Sequence[Budget], widths: Widths, meter: Meter
) -> tuple[Bools, tuple[str, ...]]:
    """The removed channels of a model within all budgets, and the reasons for what stays.

    If no level is within them, the smallest model is taken, and a reason says how near it comes.
    """
    search = _Search(findings, budgets, widths, meter)
    if not meter.measures:
        return search.largest()
    for level in LEVELS:
        meter.learn(search.removal(widths.at(level)))
    return _measured(search)


def _measured(search: _Search) -> tuple[Bools, tuple[str, ...]]:
    """The largest model found whose latency was measured, and is within the budget.

    After a model that is above it, the search aims so much lower.
    """
    best: tuple[float, tuple[Bools, tuple[str, ...]]] | None = None
    for _ in range(TRIES):
        found = search.largest()
        new = search.meter.learn(Removal(search.findings.solution, found[0]))
        used = search.used(found[0])
        if used <= 1 and (best is None or used > best[0]):
            best = used, found
        if used <= 1 and (not new or used >= 1 - ENOUGH):
            break
        search.learned(lower=max(used, 1.0))
    removed, reasons = search.largest() if best is None else best[1]
    return removed, (*reasons, *search.predicted(removed))


class _Search:
    """Figures of plans, by their counts."""

    def __init__(self, findings: Findings, budgets: Sequence[Budget], widths: Widths, meter: Meter) -> None:
        self.findings, self.budgets, self.widths, self.meter = findings, budgets, widths, meter
        self._known: dict[tuple[tuple[int, int], ...], Figures] = {}
        self._aim = 1.0

    def largest(self) -> tuple[Bools, tuple[str, ...]]:
        """The removed channels of the largest model that is found, and the reasons for what stays."""
        low, high, widths = 0.0, 1.0, self.widths
        if self.fits(widths.at(low)):
            return widths.flags(widths.at(low))
        if not self.fits(widths.at(high)):
            removed, reasons = widths.flags(widths.at(high))
            return removed, (*reasons, *self.missed(removed))
        for _ in range(STEPS):
            middle = (low + high) / 2
            if self.fits(widths.at(middle)):
                high = middle
            else:
                low = middle
            if widths.at(low) == widths.at(high):
                break
        return widths.flags(self.filled(dict(widths.at(high)), widths.at(low)))

    def learned(self, lower: float) -> None:
        """Forget figures, since those that are predicted have become better; aim at latencies so many times lower."""
        self._known.clear()
        self._aim /= lower

    def removal(self, counts: Counts) -> Removal:
        """The removal with these counts."""
        return Removal(self.findings.solution, self.widths.flags(counts)[0])

    def figures(self, counts: Counts) -> Figures:
        """The figures of the model that these counts leave."""
        key = tuple(sorted(counts.items()))
        if key not in self._known:
            self._known[key] = self.meter.of(self.removal(counts))
        return self._known[key]

    def used(self, removed: Bools) -> float:
        """The largest share of a budget that is used."""
        return self._share(self.meter.of(Removal(self.findings.solution, removed)))

    def share(self, counts: Counts) -> float:
        """The largest share of a budget that the model uses which these counts leave."""
        return self._share(self.figures(counts))

    def _share(self, figures: Figures) -> float:
        return max(budget.of(figures) / (budget.limit or 1) for budget in self.budgets)

    def predicted(self, removed: Bools) -> Iterator[str]:
        """Sentences on the figures that were predicted from measurements."""
        figures = self.meter.of(Removal(self.findings.solution, removed))
        for budget in self.budgets:
            if budget.key in TIMED:
                share = budget.of(figures) / budget.full
                figure, full = budget.shown(budget.of(figures)), budget.shown(budget.full)
                told = f"{budget.key}: {figure} of {full} ({share:.1%}) predicted"
                yield f"{told} from the table of latencies (latency_table=)"

    def fits(self, counts: Counts) -> bool:
        """True if all budgets hold."""
        figures = self.figures(counts)
        return all(budget.of(figures) <= self._limit(budget) for budget in self.budgets)

    def _limit(self, budget: Budget) -> float:
        return budget.limit * self._aim if budget.key in TIMED else budget.limit

    def close(self, counts: Counts) -> bool:
        """True if one of the budgets is nearly used up."""
        figures = self.figures(counts)
        return any(budget.of(figures) >= (1 - CLOSE) * self._limit(budget) for budget in self.budgets)

    def filled(self, counts: dict[int, int], wanted: Counts) -> Counts:
        """The counts with channels that come back, as long as all budgets hold.

        First the groups that lose fewer at the next lower level get what they have there; then each group in turn gets
        one step more, those first that have lost the largest share. If much of the budget is left because steps are
        large, a group loses some where others get more for it: of the exchanges that leave little of the budget, the
        one whose shares are nearest to those of the level.
        """
        level = dict(counts)
        for number in counts:
            changed = {**counts, number: wanted[number]}
            if wanted[number] < counts[number] and not self.close(counts) and self.fits(changed):
                counts = changed
        counts = self._come_back(counts)
        left = TRADES // (len(counts) + 1) if self.widths.exchanges else 0
        while left and not self.close(counts):
            options = list(itertools.islice(self._traded(counts, level), left))
            left -= len(options)
            if near := [option for option in options if self.close(option)]:
                return min(near, key=lambda option: self._distance(option, level))
            best = max(options, key=self.share, default=counts)
            if self.share(best) <= self.share(counts):
                break
            counts = best
        return counts

    def _distance(self, first: Counts, second: Counts) -> float:
        """The distance between the shares that groups lose: the sum of squares."""
        one, other = self._shares(first), self._shares(second)
        return sum((one[number] - other[number]) ** 2 for number in first)

    def _by_share(self, counts: Counts) -> list[int]:
        """The groups, those first that have lost the largest share."""
        shares = self._shares(counts)
        return sorted(counts, key=lambda number: -shares[number])

    def _shares(self, counts: Counts) -> dict[int, float]:
        groups = self.findings.groups
        return {number: self.widths.share(groups[number], count) for number, count in counts.items()}

    def _come_back(self, counts: Counts, without: int | None = None) -> dict[int, int]:
        """The counts where each group in turn gets one step more, as long as all budgets hold.

        without: a group that gets none.
        """
        counts, came_back = dict(counts), True
        while came_back:
            came_back = False
            for number in self._by_share(counts):
                if number != without and not self.close(counts):
                    steps = range(counts[number] - self.widths.step, -1, -self.widths.step)
                    changed = self._moved(counts, number, steps)
                    if changed != counts and self.fits(changed):
                        counts, came_back = changed, True
        return counts

    def _moved(self, counts: Counts, number: int, steps: Iterable[int]) -> dict[int, int]:
        """The counts with the first of some steps of a group that a budget sees; the same counts if there is none."""
        before = self.figures(counts)
        for count in steps:
            changed = {**counts, number: count}
            after = self.figures(changed)
            if any(budget.of(before) != budget.of(after) for budget in self.budgets):
                return changed
        return dict(counts)

    def _traded(self, counts: Counts, level: Counts) -> Iterator[dict[int, int]]:
        """The counts where one group loses some steps, and others get what fits then; one step of each group first.

        level: what the groups lose at their common level, from which none goes far.
        """
        sizes = {group.number: group.size for group in self.findings.groups}
        far = {number: count + (sizes[number] - count) // APART for number, count in level.items()}
        most = {number: min(count, far[number]) for number, count in self.widths.at(1.0).items()}
        fewer = {number: dict(counts) for number in reversed(self._by_share(counts))}
        while fewer:
            for number, before in list(fewer.items()):
                steps = range(before[number] + self.widths.step, most[number] + 1, self.widths.step)
                fewer[number] = self._moved(before, number, steps)
                if fewer[number] == before:
                    del fewer[number]
                else:
                    yield self._come_back(fewer[number], without=number)

    def missed(self, removed: Bools) -> Iterator[str]:
        """Sentences on the budgets that a plan does not meet: how near it comes, and what holds it."""
        removal = Removal(self.findings.solution, removed)
        figures = self.meter.of(removal)
        for budget in self.budgets:
            figure = budget.of(figures)
            if figure > budget.limit:
                held = held_after(self.findings, removal, 1 - budget.limit / figure)
                why = "every group has lost the most that it may"
                why += f": {self.widths.limits}" if self.widths.limits else ""
                why += f"; held: {'; '.join(held)}" if held else ""
                do = "Raise the budget" + (
                    ", or loosen what is named here" if "=" in self.widths.limits or held else ""
                )
                yield f"{budget.missed(figure)}: {why}. {do}"
