"""Setting slots of a tensor to zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def zero_slots(tensor: torch.Tensor, dims: Mapping[int, Any]) -> None:
    """Set slots of a tensor to zero, in place. A tensor of integers is left as it is, since it may contain positions.

    dims: dimension -> the slots.
    """
    if not tensor.is_floating_point() and not tensor.is_complex():
        return
    for dim, indices in dims.items():
        tensor.index_fill_(dim, torch.as_tensor(indices, dtype=torch.int64, device=tensor.device), 0)
