"""Weights that are computed with a norm keep their values in the small model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.capture.weight_norms import normed_weights
from fxprune.channels.groups import Removal
from fxprune.proof.kept_weights import KeptWeights, kept_weights, making_weights
from fxprune.rewrite.norms import rescaled, without_marks
from fxprune.rewrite.tensors import cut

FindingsT = TypeVar("FindingsT", bound=Findings)


def keep_weights(findings: FindingsT) -> FindingsT:
    """The findings without the marks of norms that weights are divided by: what stays of such a weight does not change.

    A weight norm over a removed row would be 0 / 0; its `g` makes the row zero.
    """
    inside = making_weights(findings)
    if not inside:
        return findings
    calls = [
        call for walked in findings.walked for seen in walked.observations.values() for call in seen.marked.items()
    ]
    events = {event for key, (call, _) in calls if key in inside for event, _ in call.marks}
    marks = tuple(mark for mark in findings.observed.marks if mark.event not in events)
    return without_marks(findings, marks, lambda key: key in inside)


def weights_after(
    findings: Findings, removal: Removal, zeroed: Mapping[str, Mapping[int, Any]] | None = None
) -> KeptWeights:
    """The weights of the original without what is removed; zeroed: further slots that are zero."""
    slots: dict[str, dict[int, Any]] = {name: dict(dims) for name, dims in (zeroed or {}).items()}
    for first, dims in kept_slots(findings, removal).items():
        for name in findings.names_of(first):
            for dim, kept in dims.items():
                gone = np.union1d(np.flatnonzero(~kept), slots.setdefault(name, {}).get(dim, ()))
                slots[name][dim] = gone.astype(int).tolist()
    return kept_weights(findings.model, slots)


def own_numbers(findings: Findings, removal: Removal) -> dict[str, Tensor]:
    """The numbers of those tensors of the small model that are no cut of the original, in float64, by all names."""
    made = rescaled(findings, removal)
    if not normed_weights(findings.model):
        return made
    kept = kept_slots(findings, removal)
    for name, values in weights_after(findings, removal).values.items():
        made[name] = cut(values, kept.get(findings.first_name(name), {}))
    return made
