"""The members of groups, and locked dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fxprune.channels.groups import Ints
from fxprune.ops import Event


@dataclass(frozen=True)
class Member:
    """One dimension of a parameter or buffer in which a group's channels have slots.

    slots: the slots, ascending. A channel can have several: H * W in the weight behind a flattened [C, H, W].
    index: for each slot its channel, counted within the group from 0; of the same length as `slots`.
    """

    parameter: str
    dim: int
    tensor: torch.Tensor = field(repr=False)
    index: Ints = field(repr=False)
    slots: Ints = field(repr=False)

    def per_channel(self, values: torch.Tensor, size: int) -> torch.Tensor:
        """The sum of the values at the slots of each channel: [size].

        values: one per index of the dimension. size: the number of channels of the group.
        """
        index = torch.from_numpy(self.index).to(values.device)
        slots = torch.from_numpy(self.slots).to(values.device)
        return values.new_zeros(size).index_add_(0, index, values[slots])


@dataclass(frozen=True)
class Locked:
    """The dimensions whose slots one event locks.

    slots: (parameter, dimension) -> how many of its slots are locked.
    parameters: the number of elements of the tensors at these slots. An element counts twice if two of its dimensions
        are locked.
    """

    event: Event
    slots: Mapping[tuple[str, int], int]
    parameters: int

    def __str__(self) -> str:
        held = ", ".join(f"{name}[{dim}]" for name, dim in list(self.slots)[:3])
        more = f" and {len(self.slots) - 3} more" if len(self.slots) > 3 else ""
        return f"{self.event}: holds {held}{more}"
