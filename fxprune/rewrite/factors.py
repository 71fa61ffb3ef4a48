"""The weights of the small model that carry a factor, so that scales are right which code computes from widths.

`carriers.py` finds the factors; `fxprune/planning/factors.py` has them as a part of the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import FoldedConstants
from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.channels.groups import Bools, Removal
from fxprune.planning.factors import Factor
from fxprune.rewrite.tensors import cut


def multiplied(
    findings: Findings, removal: Removal, factors: ScaleFactors, numbers: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`numbers` and the parameters that carry a factor, multiplied by it, in float64 and at their new size.

    numbers: name of a parameter -> other numbers than those that were cut from the original.
    """
    kept, made = kept_slots(findings, removal) if factors.parameters else {}, dict(numbers)
    for name, factor in factors.parameters.items():
        tensor, stays = findings.tensors[name], kept.get(name, {})
        values = numbers[name] if name in numbers else cut(tensor.detach().to(torch.float64), stays)
        product = values * _of_kept(factor, stays).to(values.device)
        made.update(dict.fromkeys(findings.names_of(name), product))
    return made


def with_factors(
    findings: Findings, removal: Removal, factors: ScaleFactors, constants: FoldedConstants
) -> FoldedConstants:
    """The constants, where a bias that a layer gets carries the factor of the layer's weight."""
    biases, kept = dict(constants.biases), kept_slots(findings, removal) if factors.parameters else {}
    for place, bias in constants.biases.items():
        name = findings.first_name(f"{place}.weight")
        if name in factors.parameters:
            factor = _of_kept(factors.parameters[name], kept.get(name, {}))
            biases[place] = bias * factor.reshape(factor.shape[0], -1)[:, 0].to(bias.device)
    return replace(constants, biases=biases)


def _of_kept(factor: torch.Tensor, kept: Mapping[int, Bools]) -> torch.Tensor:
    """The factor of the slots that stay."""
    return cut(factor, {dim: flags for dim, flags in kept.items() if factor.shape[dim] > 1})


def factors_of(findings: Findings, removal: Removal, factors: ScaleFactors) -> tuple[Factor, ...]:
    """The factors as a part of the plan: under all names of a parameter, in the numbering of the original."""
    kept, made = kept_slots(findings, removal) if factors.parameters else {}, []
    for name, factor in sorted(factors.parameters.items()):
        parts = _parts(factor, kept.get(name, {}))
        made += [Factor(n, dim, slots, number) for n in findings.names_of(name) for dim, slots, number in parts]
    return tuple(made)


def _parts(factor: torch.Tensor, kept: Mapping[int, Bools]) -> list[tuple[int, tuple[int, ...] | None, float]]:
    """Dimension, kept slots and factor of every part of a parameter that carries one; no slots where all do."""
    dims = [d for d, size in enumerate(factor.shape) if size > 1]
    if not dims:
        return [(0, None, float(factor.reshape(-1)[0]))]
    (dim,) = dims
    flat = factor.reshape(-1)
    if dim in kept:
        flat = torch.where(torch.from_numpy(kept[dim]), flat, 1.0)
    return [
        (dim, tuple(torch.nonzero(flat == number).reshape(-1).tolist()), number)
        for number in sorted({*flat.tolist()} - {1.0})
    ]
