"""Text views of findings and of shapes. Computes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tabulate import tabulate

from fxprune.findings import Findings


def findings_report(findings: Findings) -> str:
    """One row per group, then one per operation that holds channels back."""
    cost = findings.solution.cost()
    rows = [
        (
            g.name,
            g.kind,
            g.size,
            len(g.members),
            int(cost[g.channels[0]]),
            "yes" if g.exact else "no: " + "; ".join(sorted({r.split(" in ")[0] for r in g.reasons})),
        )
        for g in findings.groups
    ]
    headers = ("group", "kind", "channels", "members", "params per channel", "exact")
    parts = [tabulate(rows, headers=headers) if rows else "no removable channels"]
    if findings.locked:
        held = [
            (
                locked.event.op,
                locked.event.module or "(model)",
                _short(locked.event.source),
                locked.event.why,
                _list([f"{p}[{d}]" for p, d in locked.slots]),
                locked.parameters,
            )
            for locked in findings.locked
        ]
        parts.append("locked:\n" + tabulate(held, headers=("operation", "module", "source", "why", "holds", "params")))
    return "\n\n".join(parts)


def shapes_report(before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]) -> str:
    """One row per tensor that changed."""
    rows = [
        (name, _shape(shape), _shape(after[name]), math.prod(after[name]) / max(math.prod(shape), 1))
        for name, shape in before.items()
        if name in after and after[name] != shape
    ]
    return tabulate(rows, headers=("tensor", "before", "after", "kept"), floatfmt=".2f")


def _list(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f", ... {len(names) - 2} more" if len(names) > 2 else "")


def _short(source: str) -> str:
    return "/".join(source.split("/")[-2:])


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
