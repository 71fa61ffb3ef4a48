"""The loop of folding: which channels can be removed exactly, and the new numbers of biases, weights and maps.

A layer that reads channel k with the constant c_k computes y[o] = ... + sum_k W[o, k] c_k. That sum goes into its bias.
Where zeros are padded around the channel, the sum is smaller near the border, and no bias is right everywhere. Then one
of the constant channels, the *carrier* 0, stays. Its column of the weight takes up the others:
W'[o, 0] = W[o, 0] + sum_k W[o, k] c_k / c_0. The weights of its own layer are zero, but the bias and the shifts behind
it still make it c_0. With `maps`, the sum is added to the result as an image of constants instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

import numpy as np
import torch

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import FoldedConstants, bias_name
from fxprune.channels.groups import Bools, Removal
from fxprune.fold.changes import Changes
from fxprune.fold.decision import Decision
from fxprune.fold.reading import ProductReading
from fxprune.fold.reference import read
from fxprune.ops.layers import weight_output_dim
from fxprune.planning.plan import Removed
from fxprune.proof.zeroed import zero_slots
from fxprune.rewrite.kept_weights import weights_after
from fxprune.rewrite.norms import rescaled
from fxprune.rewrite.tensors import cut


@dataclass(frozen=True)
class Folding:
    """The result of `fold`.

    removed: flags of the channels to remove. carriers: flags of those that stay to carry the others' constants.
    zeroed: the slots that the reference sets to zero.
    constants: the new values of the tensors that take constants up. reasons: channel -> why it stays.
    """

    removed: Bools
    carriers: Bools
    zeroed: Removed
    constants: FoldedConstants
    reasons: Mapping[int, str]


def zeroed_by(findings: Findings, removed: Bools) -> Removed:
    """The output slots of these channels in the weight of every layer, {weight: {dimension: slots}}.

    Setting them to zero is to remove "the weights of a channel"; its biases and norms stay. removed: flags of channels.
    """
    removal, zeroed = Removal(findings.solution, removed), {}
    for axis in findings.axes:
        if axis.parameter in findings.tensors and axis.dim == weight_output_dim_of(findings, axis.parameter):
            kept = removal.kept(axis.vector)
            if kept is not None:
                for name in findings.names_of(axis.parameter):
                    zeroed[name] = {axis.dim: np.flatnonzero(~kept).tolist()}
    return zeroed


def weight_output_dim_of(findings: Findings, parameter: str) -> int | None:
    """The output dimension of a parameter that is the weight of a layer, None for any other parameter."""
    name = parameter.partition("parametrizations.")[2] or parameter.rpartition(".")[2]
    return weight_output_dim(findings.layer(parameter), name, findings.tensors[parameter].ndim)


@torch.no_grad()
def fold(
    findings: Findings,
    removed: Bools,
    zeroed: Removed | None,
    keep: Callable[[Bools], None],
    *,
    maps: bool = False,
    places: Set[str] = frozenset(),
) -> Folding:
    """Choose as many of these channels as can be removed exactly, and compute what takes up their constants.

    Args:
        removed: flags of the channels that should be removed.
        zeroed: the slots that the reference sets to zero; None for the weights of the channels that are removed.
        keep: a function that clears flags of channels, in place, where a dimension would be empty otherwise.
        maps: where zeros are padded, add a map of constants instead of keeping a carrier.
        places: names of biases and nodes that always get a bias or a map, even if every constant is zero.
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
        if not decision.gave_up_since(before):  # only carriers stayed, and their weights are zero still
            break
    return _result(decision, slots())


def _result(decision: Decision, zeroed: Removed) -> Folding:
    """The decision as a `Folding`, with the new numbers of every parameter that changes.

    zeroed: the slots that the reference sets to zero; parameters that keep such slots get these zeros as well.
    """
    findings = decision.findings
    removal = Removal(findings.solution, decision.removed)
    weights = weights_after(findings, removal, zeroed)
    values: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    maps: dict[str, torch.Tensor] = {}

    def value(name: str) -> torch.Tensor:
        if name not in values:
            tensor = weights.values.get(name, findings.tensors[name].detach())
            values[name] = tensor.to(torch.float64, copy=True)
            zero_slots(values[name], weights.zeroed.get(name, {}))
        return values[name]

    own = rescaled(findings, removal)  # norms that keep counting the original width get their numbers elsewhere
    for name in weights.values.keys() & findings.tensors.keys():
        value(name)
    for name in (zeroed.keys() & findings.tensors.keys()) - own.keys():
        if _keeps_zeroed(findings, name, zeroed[name], removal):
            value(name)
    done: set[str] = set()
    for reading in decision.products:
        new = reading.bias.name if reading.bias.new else ""
        for name, change in decision.changes.of(reading, decision.removed_and_read(reading, removal)).items():
            place = bias_name(name) if new and name.startswith("%") else name
            if name in done or not (place in decision.changes.places or bool((change != 0).any())):
                continue
            done.add(name)
            if name == reading.map_node:
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
    return Folding(decision.removed, decision.carriers, zeroed, FoldedConstants(made, biases, maps), decision.reasons)


def _of_kept(change: torch.Tensor, reading: ProductReading, removal: Removal) -> torch.Tensor:
    """A change [out, ...] without the rows of removed outputs."""
    kept = None if reading.out is None else removal.kept(reading.out)
    return change if kept is None else change[torch.from_numpy(kept)]


def _keeps_zeroed(findings: Findings, name: str, dims: Mapping[int, list[int]], removal: Removal) -> bool:
    """True if the small model keeps some slots that the reference sets to zero, as those of carriers.

    dims: dimension of the parameter `name` -> the slots that are set to zero.
    """
    vectors = {(a.parameter, a.dim): a.vector for a in findings.axes}
    for dim, slots in dims.items():
        kept = removal.kept(vectors[name, dim]) if (name, dim) in vectors else None
        if (name, dim) in vectors and (kept is None or kept[slots].any()):
            return True
    return False
