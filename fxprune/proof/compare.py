"""Proof by numbers: the small model against its reference, run by run, both in float64.

The reference is the original with every removed slot of every parameter and buffer set to zero. For groups whose
removal changes a statistic that is not what "the channel never existed" means; there the operations that take the
statistic see only the kept slots, and everything else is as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.findings import Findings
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import clean_caches
from fxprune.capture.values import tensors_in
from fxprune.channels.groups import Removal
from fxprune.proof.called_numbers import CalledNumbers
from fxprune.proof.deterministic import deterministic
from fxprune.proof.float64 import Float64Run, in_float64
from fxprune.proof.kept_statistics import KeptStatistics

TOLERANCE = 1e-9
"""A relative error up to this is rounding."""


class NoReferenceError(Exception):
    """The original does not run in float64, so that there is nothing to compare with; the text says why."""


def compare(
    findings: Findings,
    small: nn.Module,
    removal: Removal,
    zeroed: Mapping[str, Any],
    exact: Mapping[str, torch.Tensor] | None = None,
) -> float:
    """Returns the relative error of `small` against its reference, the largest over all example inputs.

    Args:
        zeroed: slots that are zero in the reference: the removed ones, or fewer where constants were folded.
        exact: parameters of `small` that are new numbers, before they were rounded to their type.

    Raises `NoReferenceError` where the original does not run in float64.
    """
    with clean_caches(findings.model), deterministic():
        every = (findings.inputs, *findings.subject.more)
        return max(_error_on(inputs, findings, small, removal, zeroed, exact or {}) for inputs in every)


def _error_on(
    inputs: Inputs,
    findings: Findings,
    small: nn.Module,
    removal: Removal,
    zeroed: Mapping[str, Any],
    exact: Mapping[str, torch.Tensor],
) -> float:
    """The relative error on one of the example inputs; inf where the small model or the reference fails."""
    values = findings.captured.values(inputs)
    numbers = (CalledNumbers(), CalledNumbers()) if findings.captured.real else (None, None)
    try:
        reference = _run_reference(findings, removal, zeroed, values, numbers[0])
    except Exception as error:
        if _changes_statistics(findings, removal) and _runs(findings, values):
            return float("inf")  # the original runs, its reference cannot be made
        text = str(error).strip().splitlines()
        raise NoReferenceError(f"{type(error).__name__}: {text[0] if text else ''}") from error
    try:
        result = _run_small(findings, small, exact, values, numbers[1])
    except Exception:
        return float("inf")  # the original runs in float64, so the small model must
    if numbers[0] is not None and numbers[1] is not None and not numbers[0].agrees(numbers[1], TOLERANCE):
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
    """The result of the original, slots zeroed and changed statistics taken over the kept ones."""
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
    """The result of the small model."""
    graph = small.graph if isinstance(small, fx.GraphModule) else findings.captured.graph
    return Float64Run(graph, small, unrounded=exact, numbers=numbers).run(*in_float64(values))


def _changes_statistics(findings: Findings, removal: Removal) -> bool:
    """True if a statistic is taken over some of the removed channels."""
    return bool((findings.inexact & removal.removed).any())


def _runs(findings: Findings, values: list[Any]) -> bool:
    """True if the original runs in float64."""
    try:
        Float64Run(findings.captured.graph, findings.captured.module).run(*in_float64(values))
    except Exception:
        return False
    return True


# -- the error --------------------------------------------------------------------------------------------


def relative_error(small: Any, reference: Any) -> float:
    """Returns max |small - reference| / max |reference| over all tensors of two equal structures.

    inf where shapes differ, and where a difference is no number or not finite.
    """
    ours, theirs = tensors_in(small), tensors_in(reference)
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if not a.numel():
            continue
        a, b = _wide(a), _wide(b)
        scale = float(b.abs().max())
        error = float((a - b).abs().max()) / (scale or 1.0)
        worst = max(worst, error if np.isfinite(error) else float("inf"))  # max(0.0, nan) would be 0.0
    return worst


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64, a complex one in complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def rounding_amplification(findings: Findings, removal: Removal, zeroed: Mapping[str, Any]) -> float:
    """Returns how much the reference itself moves, relatively, when its inputs move by one rounding of float64.

    A deep network with random statistics can amplify a rounding by many orders of magnitude. No two ways of computing
    it agree better than that, however right they are.
    """
    with clean_caches(findings.model), deterministic():
        values = findings.captured.values(findings.inputs)
        moved = pytree.tree_map_only(torch.Tensor, _move, in_float64(values))
        runs = (_run_reference(findings, removal, zeroed, given) for given in (moved, values))
        return relative_error(*runs)


def _move(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, one rounding away."""
    return tensor * (1 + torch.finfo(torch.float64).eps) if tensor.is_floating_point() else tensor


def first_wrong_group(error_of: Callable[[Any], float], removal: Removal) -> int:
    """The first group whose removal alone disagrees, -1 if only several together do.

    Args:
        error_of: the relative error of the model without these channels.
    """
    s = removal.solution
    for group in range(s.groups):
        channels = s.in_group(group)
        alone = np.zeros_like(removal.removed)
        alone[channels] = removal.removed[channels]
        if alone.any() and not error_of(alone) <= TOLERANCE:
            return group
    return -1
