"""The masked reference: a copy of the original in which every removed slot is zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.arguments import checks_arguments, shown
from fxprune.capture.captured import fetch
from fxprune.capture.process_state import public_call
from fxprune.errors import PlanError, nearest


@checks_arguments("model", "removed")
@public_call()
def masked(model: nn.Module, removed: Mapping[str, Mapping[int, Any]]) -> nn.Module:
    """The masked reference: a deep copy with every removed slot of every parameter and buffer set to zero.

    Args:
        model: the original, which is not changed.
        removed: parameter or buffer name -> {dimension: indices}, as in `Plan.removed` and `record(small).removed`.

    Raises `PlanError` if the model has no such parameter or buffer.

    >>> import torch, fxprune
    >>> net = torch.nn.Linear(2, 3)
    >>> fxprune.masked(net, {"bias": {0: [1]}}).bias[1].item()
    0.0
    """
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, dims in removed.items():
            try:
                tensor = fetch(copied, name)
            except AttributeError:
                raise PlanError(
                    f'the model has no parameter "{name}"',
                    why=nearest(name, [n for n, _ in model.named_parameters()]),
                    do="use the model that the plan was made for",
                ) from None
            _check_slots(name, tensor, dims)
            zero_slots(tensor, dims)
    return copied


def _check_slots(name: str, tensor: Any, dims: Mapping[int, Any]) -> None:
    """Raises `PlanError` for what is no parameter or buffer, and for slots that it does not have."""
    if not isinstance(tensor, torch.Tensor):
        what = f'"{name}" is no parameter or buffer'
        raise PlanError(what, why=f"it is a {type(tensor).__name__}", do="pass names of parameters")
    for dim, indices in dims.items():
        try:
            slots = torch.as_tensor(indices, device="cpu").tolist()
        except (TypeError, ValueError, RuntimeError):
            slots = [None]
        listed = slots if isinstance(slots, list) else [slots]
        known = range(tensor.shape[dim]) if 0 <= dim < tensor.ndim else range(0)
        if not all(isinstance(slot, int) and slot in known for slot in listed):
            raise PlanError(
                f"these are no indices of dimension {dim}: {shown(indices)}",
                at=f'"{name}"',
                why=f"its shape is {tuple(tensor.shape)}",
                do="pass {dimension: indices}, as in `record(small).removed`",
            )


def zero_slots(tensor: torch.Tensor, dims: Mapping[int, Any]) -> None:
    """Set slots of a tensor to zero, in place. A tensor of integers is left as it is, since it may contain positions.

    dims: dimension -> the slots.
    """
    if not tensor.is_floating_point() and not tensor.is_complex():
        return
    for dim, indices in dims.items():
        tensor.index_fill_(dim, torch.as_tensor(indices, dtype=torch.int64, device=tensor.device), 0)
