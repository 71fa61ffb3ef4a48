"""The members of groups, and locked dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from fxprune.arguments import checks_arguments
from fxprune.channels.groups import Ints
from fxprune.errors import InputError
from fxprune.ops import Event
from fxprune.ops.layers import output_dim


@dataclass(frozen=True)
class Member:
    """One dimension of a parameter or buffer in which a group's channels have slots.

    slots: the slots, ascending. A channel can have several: H * W in the weight behind a flattened [C, H, W].
    index: for each slot its channel, counted within the group from 0; of the same length as `slots`.
    module: the layer that has the parameter. size: the number of channels of the group.
    role: what the layer does with the channels: a "producer" writes them, a "consumer" reads them, a "norm" normalises
        them; a "raw" tensor is that of a module that is no layer of torch.
    """

    parameter: str
    dim: int
    tensor: torch.Tensor = field(repr=False)
    index: Ints = field(repr=False)
    slots: Ints = field(repr=False)
    module: nn.Module = field(repr=False)
    role: str
    size: int = field(repr=False)

    @checks_arguments()
    def per_channel(self, values: torch.Tensor, size: int | None = None) -> torch.Tensor:
        """The sum of the values at the slots of each channel: [size].

        values: one per index of the dimension. size: the number of channels, that of the group by default. Raises
            `InputError` for another number of values, or a size that is smaller than that of the group.
        """
        count = self.tensor.shape[self.dim]
        if values.ndim != 1 or len(values) != count or (size is not None and size < self.size):
            raise InputError(
                "the values or the size do not fit the member",
                at=f'"{self.parameter}", dimension {self.dim}',
                why=f"the shape of the values is {tuple(values.shape)}, the size is {size}",
                do=f"pass {count} values, and a size of at least {self.size}",
            )
        index = torch.from_numpy(self.index).to(values.device)
        slots = torch.from_numpy(self.slots).to(values.device)
        return values.new_zeros(self.size if size is None else size).index_add_(0, index, values[slots])

    @checks_arguments()
    def sum_per_channel(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of the elements that belong to each channel, float64 [size] on the CPU.

        values: of the parameter's shape, such as `member.tensor.abs()`. Raises `InputError` for another shape.

        >>> import fxprune
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> reader = fxprune.analyze(net, torch.zeros(1, 2)).groups[0].members[2]
        >>> reader.role, reader.sum_per_channel(torch.tensor([[1.0, -2.0, 3.0]])).tolist()
        ('consumer', [1.0, -2.0, 3.0])
        """
        if values.shape != self.tensor.shape:
            raise InputError(
                "the values do not have the shape of the parameter",
                at=f'"{self.parameter}"',
                why=f"their shape is {tuple(values.shape)}, its shape is {tuple(self.tensor.shape)}",
                do="pass one value per element, such as `member.tensor.abs()`",
            )
        wide = values.detach().to(device="cpu", dtype=torch.float64)
        return self.per_channel(wide.movedim(self.dim, 0).flatten(1).sum(1) if wide.ndim > 1 else wide)


def role_of(module: nn.Module, dim: int, ndim: int) -> str:
    """The role of a dimension: see `Member`. module: the one that has the tensor. ndim: its number of dimensions."""
    if "Norm" in type(module).__name__:
        return "norm"
    if not any(base.__module__.startswith("torch.nn.") for base in type(module).__mro__ if base is not nn.Module):
        return "raw"
    return "producer" if dim == output_dim(module, ndim) else "consumer"


@dataclass(frozen=True)
class Locked:
    """The dimensions whose slots one event locks.

    slots: (parameter, dimension) -> how many of its slots are locked.
    parameters: the number of elements of parameters at these slots. An element counts once, also if several of its
        dimensions are locked.
    """

    event: Event
    slots: Mapping[tuple[str, int], int]
    parameters: int

    def __str__(self) -> str:
        held = ", ".join(f"{name}[{dim}]" for name, dim in list(self.slots)[:3])
        more = f" and {len(self.slots) - 3} more" if len(self.slots) > 3 else ""
        return f"{self.event}: holds {held}{more}"


def held_elements(slots: Mapping[tuple[str, int], int], shapes: Mapping[str, Sequence[int]]) -> int:
    """The number of elements of tensors at some slots; one at slots of several dimensions counts once.

    slots: (parameter, dimension) -> how many slots. shapes: the shape of each parameter.

    >>> held_elements({("weight", 0): 2, ("weight", 1): 1}, {"weight": (3, 4)})  # all but 1 x 3
    9
    """
    free = {name: list(shapes[name]) for name, _ in slots}
    for (name, dim), count in slots.items():
        free[name][dim] -= count
    return sum(math.prod(shapes[name]) - math.prod(sizes) for name, sizes in free.items())
