"""Members of groups and locked dimensions: parameters and buffers, and their slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fxprune.channels.groups import Ints
from fxprune.ops import Event


@dataclass(frozen=True)
class Member:
    """One dimension of a parameter or buffer in which a group's channels have slots.

    index: for each of its slots the channel (0 .. size - 1) of the group it goes with, ascending by slot.
    slots: the slots, same length; a channel of a flattened C x H x W input has H * W of them.
    """

    parameter: str
    dim: int
    tensor: torch.Tensor
    index: Ints
    slots: Ints

    def per_channel(self, values: torch.Tensor, size: int) -> torch.Tensor:
        """Sum `values` (one per index of the dimension) over the slots of each of the group's `size` channels."""
        index = torch.from_numpy(self.index).to(values.device)
        slots = torch.from_numpy(self.slots).to(values.device)
        return values.new_zeros(size).index_add_(0, index, values[slots])


@dataclass(frozen=True)
class Locked:
    """Parameter dimensions whose slots an operation holds back.

    slots: (parameter, dim) -> how many slots. parameters: how many elements those slots carry, at most.
    """

    event: Event
    slots: Mapping[tuple[str, int], int]
    parameters: int

    def __str__(self) -> str:
        held = ", ".join(f"{name}[{dim}]" for name, dim in list(self.slots)[:3])
        more = f" and {len(self.slots) - 3} more" if len(self.slots) > 3 else ""
        return f"{self.event}: holds {held}{more}"
