"""Folding: the constants of removed channels go into biases, carriers or maps.

A layer that reads channel k with the constant c_k computes y[o] = ... + sum_k W[o, k] c_k. That sum goes into its bias.
Where zeros are padded around the channel it is another one near the border; then one of the constant channels, the
*carrier* 0, stays and takes the others along: W'[o, 0] = W[o, 0] + sum_k W[o, k] c_k / c_0. Its own layer has zero
weights, and emits c_0 by the bias and the shifts that are there anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

import numpy as np
import torch

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import Constants, bias_name
from fxprune.channels.groups import Bools, Removal
from fxprune.fold.changes import Changes
from fxprune.fold.decision import Decision
from fxprune.fold.reading import ProductReading
from fxprune.fold.reference import read
from fxprune.ops.layers import weight_output_dim
from fxprune.planning.plan import Removed
from fxprune.proof.masked_reference import zero_slots
from fxprune.rewrite.norms import rescaled
from fxprune.rewrite.tensors import cut


@dataclass(frozen=True)
class Folding:
    """The channels to remove, and the changes of the rest.

    removed: the channels to remove. carriers: those that stay to carry the others' constants.
    zeroed: the slots that the reference sets to zero.
    constants: the new values of the tensors that take constants up. reasons: channel -> why it stays.
    """

    removed: Bools
    carriers: Bools
    zeroed: Removed
    constants: Constants
    reasons: Mapping[int, str]


def zeroed_by(findings: Findings, removed: Bools) -> Removed:
    """The output slots that the removed channels have in every layer's weight: these are "their weights"."""
    removal, zeroed = Removal(findings.solution, removed), {}
    for axis in findings.axes:
        if axis.parameter in findings.tensors and axis.dim == opened(findings, axis.parameter):
            kept = removal.kept(axis.vector)
            if kept is not None:
                for name in findings.names_of(axis.parameter):
                    zeroed[name] = {axis.dim: np.flatnonzero(~kept).tolist()}
    return zeroed


def opened(findings: Findings, parameter: str) -> int | None:
    """The output dimension of a layer's weight, None for anything else."""
    name, ndim = parameter.rpartition(".")[2], findings.tensors[parameter].ndim
    return weight_output_dim(findings.owner(parameter), name, ndim)


def fold(
    findings: Findings,
    removed: Bools,
    zeroed: Removed | None,
    keep: Callable[[Bools], None],
    *,
    maps: bool = False,
    places: Set[str] = frozenset(),
) -> Folding:
    """Choose as many of the channels in `removed` as can be removed exactly.

    Args:
        maps: add a map of constants where zeros are padded, instead of a carrier.
        places: the biases and nodes that take constants up even if all of these are zero.
        zeroed: the slots that the reference sets to zero; None for the weights of the channels in `removed`.
        keep: takes away from the removed channels, in place, those without which a dimension would be empty.
    """
    shapes = {name: tensor.shape for name, tensor in findings.tensors.items()}
    decision = Decision(findings, removed.copy(), keep, Changes(maps, places, shapes))

    def slots() -> Removed:
        if zeroed is not None:
            return zeroed
        return zeroed_by(findings, decision.removed | decision.carriers)

    while True:
        before = decision.removed.copy()
        decision.settle(read(findings, slots()))
        if zeroed is not None or (decision.removed == before).all() or not decision.removed.any():
            break
        if not decision.lost(before):  # carriers only: what is zero is what it was
            break
    return _carried_out(decision, slots())


def _carried_out(decision: Decision, zeroed: Removed) -> Folding:
    """The result, with every parameter that changes."""
    findings = decision.findings
    removal = Removal(findings.solution, decision.removed)
    values: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    maps: dict[str, torch.Tensor] = {}

    def value(name: str) -> torch.Tensor:
        if name not in values:
            values[name] = findings.tensors[name].detach().to(torch.float64, copy=True)
            zero_slots(values[name], zeroed.get(name, {}))
        return values[name]

    own = rescaled(findings, removal)  # norms that go on counting their width have numbers of their own
    for name in (zeroed.keys() & findings.tensors.keys()) - own.keys():
        if _still_there(findings, name, zeroed[name], removal):
            value(name)
    done: set[str] = set()
    for reading in decision.products:
        new = reading.bias.name if reading.bias.new else ""
        for name, change in decision.changes.of(reading, decision.gone(reading, removal)).items():
            wanted = bias_name(name) if new and name.startswith("%") else name
            if name in done or not (wanted in decision.changes.places or bool((change != 0).any())):
                continue
            done.add(name)
            if name == reading.result:
                maps[name] = _of_kept(change, reading, removal)
            elif name == new:
                layer = name if name.startswith("%") else name.removesuffix(".bias")
                biases[layer] = _of_kept(change, reading, removal)
            else:
                value(name).add_(change)
    kept = kept_slots(findings, removal)
    made = {
        alias: cut(tensor, kept.get(name, {})) for name, tensor in values.items() for alias in findings.names_of(name)
    }
    return Folding(decision.removed, decision.carriers, zeroed, Constants(made, biases, maps), decision.reasons)


def _of_kept(change: torch.Tensor, reading: ProductReading, removal: Removal) -> torch.Tensor:
    """The numbers of the kept outputs, [out, ...]."""
    kept = None if reading.out is None else removal.kept(reading.out)
    return change if kept is None else change[torch.from_numpy(kept)]


def _still_there(findings: Findings, name: str, dims: Mapping[int, list[int]], removal: Removal) -> bool:
    """True if slots that the reference sets to zero stay, as those of carriers do."""
    vectors = {(a.parameter, a.dim): a.vector for a in findings.axes}
    for dim, slots in dims.items():
        kept = removal.kept(vectors[name, dim]) if (name, dim) in vectors else None
        if (name, dim) in vectors and (kept is None or kept[slots].any()):
            return True
    return False
