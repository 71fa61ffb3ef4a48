"""Channels that stay because a dimension would have too few slots without them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools
from fxprune.channels.vector import Vector
from fxprune.planning.keeping import Scores


def keep_enough(findings: Findings, removed: Bools, scores: Scores) -> tuple[str, ...]:
    """Keep more channels until every dimension has as many slots as the model needs.

    A dimension cannot be empty, nor have fewer slots than `topk` chooses from it; some kernels need a multiple.

    Returns a reason for each such dimension of a parameter.

    removed: flags of channels, cleared in place. scores: one per channel; those with the best are kept first.
    """
    observed = findings.observed
    chosen = "the model chooses {} of its slots (topk)"
    needs = [(vector, _at_least(least), chosen.format(least)) for vector, least in observed.minima]
    needs += [(vector, _at_least(1), "it would be empty") for vector in observed.vectors]
    needs += [(vector, _multiple_of(number), why) for vector, number, why in observed.multiples]
    reasons: dict[str, None] = {}
    before = -1
    while before != np.count_nonzero(removed):  # the slots that one dimension keeps can be too few for another
        before = int(np.count_nonzero(removed))
        for vector, missing, why in needs:
            if kept := _keep_more(findings, vector, removed, scores, missing):
                axes = findings.solution.axes
                axis = next((a for a in axes if a.vector.representative is vector.representative), None)
                named = f'"{axis.parameter}" in dimension {axis.dim}' if axis else f"a dimension of size {vector.size}"
                reasons[f"{named} keeps {kept} more of its {vector.size} slots: {why}"] = None
    return tuple(reasons)


def _at_least(least: int) -> Callable[[int], int]:
    return lambda count: max(least - count, 0)


def _multiple_of(number: int) -> Callable[[int], int]:
    return lambda count: -count % number


def _keep_more(
    findings: Findings,
    vector: Vector,
    removed: Bools,
    scores: Scores,
    missing: Callable[[int], int],
) -> int:
    """Keep more slots of a dimension; returns how many.

    missing: a function from the number of slots that stay to the number of slots that are missing.
    """
    columns = findings.solution.channels_of(vector)
    if not columns:
        return 0
    table = np.stack(columns)
    gone = (removed[table] & (table >= 0)).any(0)
    more = min(missing(int(np.count_nonzero(~gone))), int(np.count_nonzero(gone)))
    if not more:
        return 0
    worst = np.where(gone, np.where(table >= 0, scores[table], np.inf).min(0), -np.inf)
    for slot in np.argsort(-worst, kind="stable")[:more]:
        removed[table[:, slot][table[:, slot] >= 0]] = False
    return more
