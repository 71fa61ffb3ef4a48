"""Channels that an analysis would let go, and that stay in a small model because of an error of its rewrite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fxprune.analysis.findings import Findings
from fxprune.channels.solve import solve
from fxprune.ops import Event


@dataclass(frozen=True)
class HeldBack:
    """Dimensions that were locked after the analysis.

    event: the place and the reason. slots: the dimensions, as (parameter, dimension).
    """

    event: Event
    slots: tuple[tuple[str, int], ...]


def held_back(first: Findings, narrower: Findings) -> tuple[HeldBack, ...]:
    """The dimensions that are locked in the second findings by events that the first have not."""
    new = narrower.events[len(first.events) :]
    return tuple(HeldBack(locked.event, tuple(locked.slots)) for locked in narrower.locked if locked.event in new)


def held_by_both(
    first: Iterable[HeldBack], second: Iterable[HeldBack], removed: Mapping[str, Mapping[int, Any]]
) -> tuple[HeldBack, ...]:
    """Returns what is held after two steps: in the first one, unless the second removes slots there, or in the second.

    removed: name of a tensor -> dimension -> the slots that the second step removes.
    """
    stay = [replace(one, slots=tuple(s for s in one.slots if s[1] not in removed.get(s[0], {}))) for one in first]
    return tuple(dict.fromkeys((*(one for one in stay if one.slots), *second)))


def with_held_back(findings: Findings, held: Iterable[HeldBack]) -> Findings:
    """The findings of an original in which these dimensions are locked. Those that it does not have are left out."""
    for one in held:
        vectors = [axis.vector for axis in findings.axes if (axis.parameter, axis.dim) in one.slots]
        vectors = [vector for vector in vectors if findings.solution.can_shrink(vector)]
        if vectors:
            observed = replace(findings.observed, events=(*findings.events, one.event))
            terms = findings.solution.terms.with_locked(vectors, len(findings.events))
            findings = replace(findings, observed=observed, solution=solve(terms, findings.solution.axes))
    return findings
