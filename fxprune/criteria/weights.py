"""The weights that a criterion reads: values that must be there, and the filters of one weight."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.analysis.findings import Findings
from fxprune.errors import PlanError


def refuse_without_values(findings: Findings, criterion: str) -> None:
    """Raise `PlanError` for a model on the meta device: its weights have no values."""
    for tensor in findings.tensors.values():
        refuse_meta(tensor, criterion)


def refuse_meta(tensor: Tensor, criterion: str) -> None:
    """Raise `PlanError` for a tensor on the meta device."""
    if tensor.device.type == "meta":
        raise PlanError(
            f'importance "{criterion}" needs weights',
            why="the model is on the meta device, its parameters have no values",
            do='use importance="random", or load the weights first',
        )


def filters_of(weight: Tensor, dim: int) -> Tensor:
    """The filters of a weight as rows [outputs, everything else] in float64; a complex number is two numbers of a row.

    dim: the dimension of the outputs.
    """
    if not -weight.ndim <= dim < weight.ndim:
        raise PlanError(
            f"the weight has no dimension {dim}",
            why=f"its shape is {tuple(weight.shape)}",
            do="pass the dimension of the outputs, for most layers 0",
        )
    moved = weight.detach().movedim(dim, 0)
    if moved.is_complex():
        moved = torch.view_as_real(moved.resolve_conj())
    return moved.flatten(1 if moved.ndim > 1 else 0).to(torch.float64).view(weight.shape[dim], -1)


def is_number(tensor: Tensor) -> bool:
    """True for a tensor of real or complex numbers, False for one of integers."""
    return tensor.is_floating_point() or tensor.is_complex()


def magnitudes(tensor: Tensor) -> Tensor:
    """The absolute values of a tensor, in float64."""
    return tensor.detach().abs().to(torch.float64)
