"""The largest model within budgets.

A plan has one number that says how much goes, its level. The level is found by bisection, on figures that come from the
analysis. Where many groups lose a channel at the same level, channels come back as long as they fit. A latency is
predicted from measurements: some levels are measured first, and then the models that are found, until what was
predicted for one is what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools, Removal
from fxprune.planning.budgets import Budget
from fxprune.planning.figures import Figures, Meter

CLOSE = 0.01
"""Channels come back until so much of the budget is left at most."""

STEPS = 40
"""The steps of the bisection; after them two levels differ by less than one channel of any group."""

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
    """

    at: Callable[[float], Counts]
    flags: Callable[[Counts], tuple[Bools, tuple[str, ...]]]
    step: int = 1


def within(
    findings: Findings, budgets: Sequence[Budget], widths: Widths, meter: Meter
) -> tuple[Bools, tuple[str, ...]]:
    """The removed channels of the largest model within all budgets, and the reasons for what stays.

    If no level is within them, the smallest model is taken, and a reason says how near it comes.
    """
    search = _Search(findings, budgets, widths, meter)
    if not meter.measures:
        return search.largest()
    for level in LEVELS:
        meter.learn(search.removal(widths.at(level)))
    return _measured(search)


def _measured(search: _Search) -> tuple[Bools, tuple[str, ...]]:
    """The largest model found whose latency was measured, and is within the budget."""
    best: tuple[float, tuple[Bools, tuple[str, ...]]] | None = None
    for _ in range(TRIES):
        search.forget()
        found = search.largest()
        new = search.meter.learn(Removal(search.findings.solution, found[0]))
        used = search.used(found[0])
        if used <= 1 and (best is None or used > best[0]):
            best = used, found
        if not new or 1 - ENOUGH <= used <= 1:
            break
    if best is None:  # nothing that was measured fits; what is predicted now may
        search.forget()
        return search.largest()
    removed, reasons = best[1]
    return removed, (*reasons, *search.predicted(removed))


class _Search:
    """Figures of plans, by their counts."""

    def __init__(self, findings: Findings, budgets: Sequence[Budget], widths: Widths, meter: Meter) -> None:
        self.findings, self.budgets, self.widths, self.meter = findings, budgets, widths, meter
        self._known: dict[tuple[tuple[int, int], ...], Figures] = {}

    def largest(self) -> tuple[Bools, tuple[str, ...]]:
        """The removed channels of the largest model within the budgets, and the reasons for what stays."""
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

    def forget(self) -> None:
        """Forget figures, since those that are predicted have become better."""
        self._known.clear()

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
        figures = self.meter.of(Removal(self.findings.solution, removed))
        return max(budget.of(figures) / (budget.limit or 1) for budget in self.budgets)

    def predicted(self, removed: Bools) -> Iterator[str]:
        """Sentences on the figures that were predicted from measurements."""
        figures = self.meter.of(Removal(self.findings.solution, removed))
        for budget in self.budgets:
            if budget.key == "latency":
                share = budget.of(figures) / budget.full
                figure, full = budget.shown(budget.of(figures)), budget.shown(budget.full)
                yield f"latency: {figure} of {full} ({share:.1%}) predicted"

    def fits(self, counts: Counts) -> bool:
        """True if all budgets hold."""
        figures = self.figures(counts)
        return all(budget.of(figures) <= budget.limit for budget in self.budgets)

    def close(self, counts: Counts) -> bool:
        """True if one of the budgets is nearly used up."""
        figures = self.figures(counts)
        return any(budget.of(figures) >= (1 - CLOSE) * budget.limit for budget in self.budgets)

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
        before, after = self.figures(counts), self.figures(changed)
        if not self.fits(changed) or all(budget.of(before) == budget.of(after) for budget in self.budgets):
            return False
        counts[number] = count
        return True

    def missed(self, removed: Bools) -> Iterator[str]:
        """Sentences on the budgets that a plan does not meet: how near it comes, and what holds it."""
        figures = self.meter.of(Removal(self.findings.solution, removed))
        held = [str(locked) for locked in self.findings.locked[:3]]
        for budget in self.budgets:
            figure = budget.of(figures)
            if figure > budget.limit:
                share = f"{budget.shown(figure)} ({figure / budget.full:.1%})"
                why = "; every group has lost the most that it may (max_ratio, min_channels)"
                why += f"; held: {'; '.join(held)}" if held else ""
                yield f"the budget is not met: {budget}; {share} stay{why}"
