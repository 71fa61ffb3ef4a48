"""Text views of an analysis and of a record. Computes nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from fxprune.analysis import Analysis
    from fxprune.record import Record


def analysis_report(analysis: Analysis) -> str:
    """One row per group, then one per operation that holds channels back."""
    cost = analysis.solution.cost()
    rows = [
        (
            g.name,
            g.kind,
            g.size,
            len(g.members),
            int(cost[g.channels[0]]),
            "yes" if g.exact else "no: " + "; ".join(sorted({r.split(" in ")[0] for r in g.reasons})),
        )
        for g in analysis.groups
    ]
    headers = ("group", "kind", "channels", "members", "params per channel", "exact")
    parts = [tabulate(rows, headers=headers) if rows else "no removable channels"]
    if analysis.locked:
        held = [
            (
                locked.event.op,
                locked.event.module or "(model)",
                _short(locked.event.source),
                locked.event.why,
                _list([f"{p}[{d}]" for p, d in locked.slots]),
                locked.parameters,
            )
            for locked in analysis.locked
        ]
        parts.append("locked:\n" + tabulate(held, headers=("operation", "module", "source", "why", "holds", "params")))
    return "\n\n".join(parts)


def record_report(record: Record) -> str:
    """One row per tensor that changed, then totals."""
    rows = [
        (name, _shape(shape), _shape(record.after[name]), math.prod(record.after[name]) / max(math.prod(shape), 1))
        for name, shape in record.before.items()
        if name in record.after and record.after[name] != shape
    ]
    table = tabulate(rows, headers=("tensor", "before", "after", "kept"), floatfmt=".2f")
    before, after = record.params
    lines = [table, "", f"path {record.path}, {before} -> {after} elements ({after / max(before, 1):.1%})"]
    lines.append("exact" if record.exact else "not exact: some statistics are taken over fewer channels")
    if record.error is not None:
        lines.append(f"relative error against the reference: {record.error:.1e}")
    return "\n".join([*lines, *(f"note: {reason}" for reason in record.reasons)])


def _list(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f", ... {len(names) - 2} more" if len(names) > 2 else "")


def _short(source: str) -> str:
    return "/".join(source.split("/")[-2:])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
