"""Proof by numbers: the small model and its reference run in float64, and their outputs are compared.

The reference is the original with every removed slot of every parameter and buffer set to zero. A statistic over
channels, such as the mean of a layer norm, would count these zeros, which it does not do if the channels never existed.
So the operations that take such a statistic get the kept slots only; all other operations run as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.findings import Findings
from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import clean_caches
from fxprune.capture.values import tensors_in
from fxprune.channels.groups import Removal
from fxprune.proof.called_numbers import CalledNumbers
from fxprune.proof.deterministic import deterministic
from fxprune.proof.float64 import Float64Run, in_float64
from fxprune.proof.kept_statistics import KeptStatistics

TOLERANCE = 1e-9
"""A relative error up to this counts as rounding."""


class NoReferenceError(Exception):
    """The original does not run in float64, so that there is no reference. The text says why."""


def compare(
    findings: Findings,
    small: nn.Module,
    removal: Removal,
    zeroed: Mapping[str, Any],
    exact: Mapping[str, torch.Tensor] | None = None,
    factors: ScaleFactors | None = None,
) -> float:
    """Returns the relative error of `small` against its reference, the largest over all example inputs.

    The error is inf if `small` does not run, or if its operations are called with other fractions.

    Args:
        findings: the analysis of the original, with the example inputs.
        small: the small model.
        removal: the removed channels.
        zeroed: tensor -> dimension -> the slots that are zero in the reference. These are the removed ones, or fewer if
            constants were folded.
        exact: name -> the new numbers of parameters of `small`, before they were rounded to the parameter's type.
        factors: the factors that weights of `small` carry, since its code computes other scales.

    Raises `NoReferenceError` if the original does not run in float64.
    """
    with clean_caches(findings.model), deterministic():
        every = (findings.inputs, *findings.subject.more)
        return max(
            _error_on(inputs, findings, small, removal, zeroed, exact or {}, factors or ScaleFactors())
            for inputs in every
        )


def _error_on(
    inputs: Inputs,
    findings: Findings,
    small: nn.Module,
    removal: Removal,
    zeroed: Mapping[str, Any],
    exact: Mapping[str, torch.Tensor],
    factors: ScaleFactors,
) -> float:
    """The relative error on one example input; see `compare`."""
    values = findings.captured.values(inputs)
    numbers = (CalledNumbers(), CalledNumbers()) if findings.captured.real else (None, None)
    try:
        reference = _run_reference(findings, removal, zeroed, values, numbers[0])
    except Exception as error:
        if _changes_statistics(findings, removal) and _runs(findings, values):
            return float("inf")  # the original runs, but not with statistics over the kept slots
        text = str(error).strip().splitlines()
        raise NoReferenceError(f"{type(error).__name__}: {text[0] if text else ''}") from error
    try:
        result = _run_small(findings, small, exact, values, numbers[1])
    except Exception:
        return float("inf")  # the reference runs in float64, so the small model must
    if numbers[0] is not None and numbers[1] is not None:
        numbers[0].seen.update({key: other for key, other in factors.numbers.items() if key in numbers[0].seen})
        if not numbers[0].same_numbers(numbers[1], TOLERANCE):
            return float("inf")
    return relative_error(result, reference)


# -- the two runs -----------------------------------------------------------------------------------------


def _run_reference(
    findings: Findings,
    removal: Removal,
    zeroed: Mapping[str, Any],
    values: list[Any],
    numbers: CalledNumbers | None = None,
) -> Any:
    """The outputs of the reference: slots are zero, and changed statistics are taken over the kept slots.

    values: one value per placeholder of the graph. numbers: notes the fractions of the run.
    """
    captured = findings.captured
    statistics = KeptStatistics(findings, removal) if _changes_statistics(findings, removal) else None
    run = Float64Run(captured.graph, captured.module, zeroed, statistics, numbers=numbers)
    return run.run(*in_float64(values))


def _run_small(
    findings: Findings,
    small: nn.Module,
    exact: Mapping[str, torch.Tensor],
    values: list[Any],
    numbers: CalledNumbers | None,
) -> Any:
    """The outputs of the small model. The arguments are those of `_run_reference` and `compare`."""
    graph = small.graph if isinstance(small, fx.GraphModule) else findings.captured.graph
    return Float64Run(graph, small, unrounded=exact, numbers=numbers).run(*in_float64(values))


def _changes_statistics(findings: Findings, removal: Removal) -> bool:
    """True if the removal changes a statistic."""
    return bool((findings.inexact & removal.removed).any())


def _runs(findings: Findings, values: list[Any]) -> bool:
    """True if the original runs in float64 without an error."""
    try:
        Float64Run(findings.captured.graph, findings.captured.module).run(*in_float64(values))
    except Exception:
        return False
    return True


# -- the error --------------------------------------------------------------------------------------------


def relative_error(small: Any, reference: Any) -> float:
    """Returns max |small - reference| / max |reference|, the largest of all tensors in two nested values.

    Returns inf if the shapes differ, or if a difference is NaN or infinite.
    """
    ours, theirs = tensors_in(small), tensors_in(reference)
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if not a.numel():
            continue
        a, b = _double_precision(a), _double_precision(b)
        scale = float(b.abs().max())
        error = float((a - b).abs().max()) / (scale or 1.0)
        worst = max(worst, error if np.isfinite(error) else float("inf"))  # max(0.0, nan) would be 0.0
    return worst


def _double_precision(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64; in complex128 if it is complex."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def rounding_amplification(findings: Findings, removal: Removal, zeroed: Mapping[str, Any]) -> float:
    """Returns the relative change of the reference's outputs when its inputs change by one rounding of float64.

    Some models amplify a rounding by many orders of magnitude, such as a deep network with random statistics. Two
    correct ways to compute such a model can differ by as much.
    """
    with clean_caches(findings.model), deterministic():
        values = findings.captured.values(findings.inputs)
        moved = pytree.tree_map_only(torch.Tensor, _one_rounding_away, in_float64(values))
        runs = (_run_reference(findings, removal, zeroed, given) for given in (moved, values))
        return relative_error(*runs)


def _one_rounding_away(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with every number changed by one rounding."""
    return tensor * (1 + torch.finfo(torch.float64).eps) if tensor.is_floating_point() else tensor


def first_wrong_group(error_of: Callable[[Any], float], removal: Removal) -> int:
    """The number of the first group whose removal alone gives a wrong model; -1 if there is none.

    Args:
        error_of: a function from flags, one per channel, to the relative error of the model without these channels.
        removal: the channels that were removed together.
    """
    s = removal.solution
    for group in range(s.groups):
        channels = s.in_group(group)
        alone = np.zeros_like(removal.removed)
        alone[channels] = removal.removed[channels]
        if alone.any() and not error_of(alone) <= TOLERANCE:
            return group
    return -1
