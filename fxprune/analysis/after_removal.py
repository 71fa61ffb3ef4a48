"""The slots and the shapes of every tensor after a removal."""

from __future__ import annotations

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools, Removal


def kept_slots(findings: Findings, removal: Removal) -> dict[str, dict[int, Bools]]:
    """Name of a tensor -> dimension -> a flag per slot, True = it stays. Only dimensions that lose slots are listed."""
    kept: dict[str, dict[int, Bools]] = {}
    for axis in findings.axes:
        mask = removal.kept(axis.vector)
        if mask is not None:
            kept.setdefault(axis.parameter, {})[axis.dim] = mask
    return kept


def shapes_after(findings: Findings, removal: Removal) -> dict[str, tuple[int, ...]]:
    """Name -> the new shape of every parameter, buffer and constant."""
    shapes = {name: list(tensor.shape) for name, tensor in findings.tensors.items()}
    for axis in findings.axes:
        shapes[axis.parameter][axis.dim] = removal.count(axis.vector)
    return {name: tuple(shape) for name, shape in shapes.items()}
