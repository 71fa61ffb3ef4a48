"""The weights that stay keep their values where a layer computes them with a norm.

A weight norm and a spectral norm divide by a norm that counts what is removed. So the tensor that can undo a change of
the norm carries the ratio, in the masked reference and in the small model alike. See `capture/weight_norms.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.steps import Step
from fxprune.capture.captured import fetch
from fxprune.capture.scopes import Key
from fxprune.capture.weight_norms import ALL, NormedWeight, normed_weights
from fxprune.ops.factors import Value
from fxprune.proof.precision import FLOAT64
from fxprune.proof.zeroed import zero_slots


@dataclass(frozen=True, eq=False)
class KeptWeights:
    """The tensors of the masked reference.

    zeroed: tensor -> dimension -> the slots that are zero. Rows of a weight norm are missing: 0 / |0| is no number.
    values: tensor -> its numbers in float64, for those that carry the ratio of two norms.
    """

    zeroed: Mapping[str, Mapping[int, Any]]
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)


def kept_weights(model: nn.Module, zeroed: Mapping[str, Mapping[int, Any]]) -> KeptWeights:
    """The tensors of the reference in which these slots are zero, and all other weights are those of the model.

    zeroed: name of a parameter or buffer -> dimension -> the slots.
    """
    slots = dict(zeroed)
    values: dict[str, torch.Tensor] = {}
    for normed in normed_weights(model):
        if any(zeroed.get(name) for name in (normed.carrier, normed.weight)):
            if normed.other:
                values.update(_of_spectral_norm(model, normed, zeroed))
            else:
                values.update(_of_weight_norm(model, normed, zeroed))
                if normed.weight in slots and normed.dim != ALL:
                    row = normed.dim % fetch(model, normed.weight).ndim
                    slots[normed.weight] = {d: s for d, s in slots[normed.weight].items() if d != row}
    return KeptWeights(slots, values)


def making_weights(findings: Findings) -> set[Key]:
    """The operations that compute weights with a norm, see `capture/weight_norms.py`."""
    inside: set[Key] = set()
    for normed in normed_weights(findings.model):
        names = {findings.first_name(name) for name in (normed.carrier, normed.weight, normed.other) if name}
        shape, made = findings.tensors[findings.first_name(normed.weight)].shape, set[Value]()
        for step in findings.observed.steps.done:
            if step.read and all(value in made or value.name in names for value in step.read):
                inside.add(step.key)
                if not _is_weight(step, tuple(shape)):
                    made.update(step.made)
    return inside


def _is_weight(step: Step, shape: tuple[int, ...]) -> bool:
    """True if a step makes the weight itself, from the two tensors of it."""
    return len(step.read) > 1 and step.made[0].shape == shape


def _of_weight_norm(
    model: nn.Module, normed: NormedWeight, zeroed: Mapping[str, Mapping[int, Any]]
) -> dict[str, torch.Tensor]:
    """g, times |v| of what stays / |v|. A row of v of which only zeros stay becomes ones, and its g is 0."""
    g, v = _double(model, normed.carrier), _double(model, normed.weight)
    dims = [d for d in range(v.ndim) if normed.dim == ALL or d != normed.dim % v.ndim]
    staying = v.clone()
    gone = zeroed.get(normed.weight, {})
    zero_slots(staying, {d: slots for d, slots in gone.items() if d in dims})
    before, after = (torch.linalg.vector_norm(t, dim=dims, keepdim=True) for t in (v, staying))
    ratio = torch.where(before > 0, after / before, 1.0)
    made = g * ratio.reshape(g.shape)
    zero_slots(made, zeroed.get(normed.carrier, {}))
    if normed.dim != ALL:
        row = normed.dim % v.ndim
        zero_slots(made, {row: gone.get(row, ())})
    empty = (after == 0) & (before > 0)
    return {normed.carrier: made, **({normed.weight: staying + empty.to(v.dtype)} if bool(empty.any()) else {})}


def _of_spectral_norm(
    model: nn.Module, normed: NormedWeight, zeroed: Mapping[str, Mapping[int, Any]]
) -> dict[str, torch.Tensor]:
    """u, times the norm / the norm of what stays."""
    u, weight, v = (_double(model, name) for name in (normed.carrier, normed.weight, normed.other))

    def norm() -> torch.Tensor:
        return torch.dot(u, torch.mv(weight.movedim(normed.dim, 0).flatten(1), v))

    before = norm()
    zero_slots(weight, zeroed.get(normed.weight, {}))
    zero_slots(u, zeroed.get(normed.carrier, {}))
    zero_slots(v, zeroed.get(normed.other, {}))
    after = norm()
    return {normed.carrier: u * (before / after)} if after != 0 else {normed.carrier: u}


def _double(model: nn.Module, name: str) -> torch.Tensor:
    tensor: torch.Tensor = fetch(model, name)
    return FLOAT64.copy(tensor)
