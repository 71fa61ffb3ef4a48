"""A tensor that stands for a sharded one, and is whole while an operation works on it."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.on_demand import OnDemand, placeholder
from fxprune.sharded.shards import gathered, spread, working_device
from fxprune.sharded.talk import Talk


class WholeOnDemand(OnDemand):
    """Stands for a sharded tensor. It is gathered from all processes, and what is written is spread over them.

    So all processes have to make the same operations.

    shards: the `DTensor`. It counts as a parameter where that is one.
    """

    __slots__ = ("shards", "talk")
    shards: Any
    talk: Talk

    @staticmethod
    def __new__(cls, shards: Any, title: str, talk: Talk) -> WholeOnDemand:
        """Makes the tensor. title: the name of the parameter. talk: that of the processes which share it."""
        parameter = shards if isinstance(shards, torch.nn.Parameter) else None
        made: WholeOnDemand = placeholder(cls, shards.shape, shards.dtype, working_device(shards), parameter)
        made.shards, made.talk, made.title = shards, talk, title
        return made

    def __init__(self, shards: Any, title: str, talk: Talk) -> None:
        """See `__new__`."""

    def whole(self) -> torch.Tensor:
        """The whole tensor, on each process."""
        return gathered(self.shards, self.title, self.talk)

    def spread(self, values: torch.Tensor) -> WholeOnDemand:
        """A tensor of the same kind with these values, which all processes have."""
        made = spread(values, self.shards, self.title)
        if isinstance(self.shards, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=self.shards.requires_grad)
        return WholeOnDemand(made, self.title, self.talk)

    def write(self, values: torch.Tensor) -> None:
        """Takes these values, which all processes have."""
        self.shards._local_tensor.copy_(spread(values, self.shards, self.title)._local_tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> WholeOnDemand:
        """A tensor of the same kind with a copy of the shards."""
        if id(self) not in memo:
            shards = self.shards.detach().clone()
            if isinstance(self.shards, torch.nn.Parameter):
                shards = torch.nn.Parameter(shards, requires_grad=self.shards.requires_grad)
            memo[id(self)] = WholeOnDemand(shards, self.title, self.talk)
            memo[id(self)].__dict__.update(self.__dict__)
        made: WholeOnDemand = memo[id(self)]
        return made
