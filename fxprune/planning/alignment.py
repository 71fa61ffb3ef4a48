"""`round_to="auto"`: the multiple of channels that pays on this machine.

Kernels work on blocks of channels, so that a width just above a multiple may take as long as the next one. Smaller
models of the same multiply-adds are measured, each with widths that are multiples of another number. What counts is the
time for each multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Removal
from fxprune.costs import LatencyTable
from fxprune.costs.latency import milliseconds
from fxprune.planning.budgets import Budget
from fxprune.planning.figures import Meter
from fxprune.planning.fitting import Widths, within

MULTIPLES = (1, 4, 8, 16, 32)
"""The multiples that are measured."""

SHARE = 0.5
"""The share of the multiply-adds that the measured models keep."""

GAIN = 0.03
"""A larger multiple is taken if it saves at least this share of the time."""


def best_multiple(
    findings: Findings,
    widths_of: Callable[[int], Widths],
    table: Callable[[str], LatencyTable],
    asked: Meter | None = None,
    budgets: Sequence[Budget] = (),
) -> tuple[int, str]:
    """The multiple that pays, and a sentence with the measured times.

    widths_of: the widths of a plan, for each multiple. table: makes an empty table of latencies. asked, budgets: the
    request. A multiple with which it cannot be met is left out, and so is one that cannot halve the cost.
    """
    latencies = table("latency")
    meter = Meter(findings, ("macs", "params"))
    whole = meter.of()
    key = "params" if whole["macs"] is None else "macs"
    full = whole[key] or 0
    budget = Budget(key, SHARE * full, full)
    seconds: dict[int, float] = {}
    for multiple in MULTIPLES:
        widths = widths_of(multiple)
        removal = Removal(findings.solution, within(findings, [budget], widths, meter)[0])
        misses = budget.of(meter.of(removal)) > budget.limit
        if multiple > 1 and (misses or (asked is not None and not _fits(findings, widths, asked, budgets))):
            continue
        latencies.learn(removal)
        seconds[multiple] = latencies.predict(removal) * budget.limit / budget.of(meter.of(removal))
    least = min(seconds.values())
    best = next(multiple for multiple in seconds if seconds[multiple] * (1 - GAIN) <= least)
    name = "MACs" if key == "macs" else "parameters"
    told = ", ".join(f"{milliseconds(time)} with multiples of {multiple}" for multiple, time in seconds.items())
    return best, f'round_to="auto" takes {best}: half of the {name} take {told}'


def _fits(findings: Findings, widths: Widths, asked: Meter, budgets: Sequence[Budget]) -> bool:
    """True if some model of these widths is within the budgets."""
    figures = asked.of(Removal(findings.solution, within(findings, budgets, widths, asked)[0]))
    return all(budget.of(figures) <= budget.limit for budget in budgets)
