"""The locks that hold most of what stays in a small model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.members import held_elements
from fxprune.analysis.observer import IN_RESULT
from fxprune.channels.groups import Removal

NOTABLE = 0.1
"""A lock is named that holds so much of what is above a budget."""

MOST = 3
"""The most locks that are named."""


def held_after(findings: Findings, removal: Removal, above: float) -> list[str]:
    """Sentences on the locks that hold a notable part of the small model, those that hold most first.

    removal: the channels that go. above: the part that is too much, as a share of the small model. Every model has
    locks at its inputs and outputs; a narrow last layer is below the part that is notable.
    """
    shapes = _shapes(findings, removal)
    whole = sum(map(math.prod, shapes.values()))
    found = []
    for locked in findings.locked:
        slots = {key: count for key, count in locked.slots.items() if key[0] in shapes}
        held = held_elements(slots, shapes)
        if held and held >= NOTABLE * above * whole:
            loosen = _how_to_loosen(findings, list(slots)) if locked.event.why == IN_RESULT else ""
            found.append((held, f"{locked}, {held:,} of {whole:,} params that stay{loosen}"))
    return [text for _, text in sorted(found, key=lambda each: -each[0])[:MOST]]


def _shapes(findings: Findings, removal: Removal) -> dict[str, Sequence[int]]:
    """The shape of each parameter in the small model."""
    shapes = {name: list(tensor.shape) for name, tensor in findings.tensors.items() if isinstance(tensor, nn.Parameter)}
    for axis in findings.axes:
        if axis.parameter in shapes:
            shapes[axis.parameter][axis.dim] = removal.count(axis.vector)
    return dict(shapes)


def _how_to_loosen(findings: Findings, held: Sequence[tuple[str, int]]) -> str:
    """Advice for a lock by the result: empty unless layers read channels that it holds."""
    for name, dim in held:
        read = findings.tensors[name].ndim > 1 and not findings.is_output_dim(name, dim)
        if read and not isinstance(findings.layer(name), nn.Embedding):  # its rows, which a tied last layer writes
            return " (if a part of the result may shrink, pass outputs= without it)"
    return ""
