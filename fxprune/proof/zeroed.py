"""Setting slots of a tensor to zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_ALL_APART = 0
"""The result of torch for a tensor of which every slot is a place in memory of its own."""


def zero_slots(tensor: torch.Tensor, dims: Mapping[int, Any]) -> None:
    """Set slots of a tensor to zero, in place. A tensor of integers is left as it is, since it may contain positions.

    dims: dimension -> the slots.
    """
    if not tensor.is_floating_point() and not tensor.is_complex():
        return
    if dims and torch._debug_has_internal_overlap(tensor) != _ALL_APART:
        tensor.data = tensor.clone(memory_format=torch.contiguous_format)  # one number would stand in several slots
    if tensor.element_size() == 1:  # float8, which torch fills no slots of
        tensor = tensor.view(torch.uint8)
    for dim, indices in dims.items():
        tensor.index_fill_(dim, torch.as_tensor(indices, dtype=torch.int64, device=tensor.device), 0)
