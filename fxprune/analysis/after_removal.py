"""The slots and the shapes that a removal leaves of every tensor."""

from __future__ import annotations

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools, Removal


def kept_slots(findings: Findings, removal: Removal) -> dict[str, dict[int, Bools]]:
    """Per parameter and buffer the surviving slots of every dimension that loses some."""
    kept: dict[str, dict[int, Bools]] = {}
    for axis in findings.axes:
        mask = removal.kept(axis.vector)
        if mask is not None:
            kept.setdefault(axis.parameter, {})[axis.dim] = mask
    return kept


def shapes_after(findings: Findings, removal: Removal) -> dict[str, tuple[int, ...]]:
    """The new shape of every parameter, buffer and constant."""
    shapes = {name: list(tensor.shape) for name, tensor in findings.tensors.items()}
    for axis in findings.axes:
        shapes[axis.parameter][axis.dim] = removal.count(axis.vector)
    return {name: tuple(shape) for name, shape in shapes.items()}
