"""A tensor that stands for a sharded one, and is whole while an operation works on it."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.sharded.shards import gathered, spread, working_device
from fxprune.sharded.talk import Talk


class WholeOnDemand(torch.Tensor):
    """Stands for a sharded tensor: it has its shape, and no numbers.

    Each operation on it gathers the whole tensor, works on it, and drops it. What an operation writes into it is spread
    over the processes. So all processes have to make the same operations.

    shards: the `DTensor`. It counts as a parameter where that is one.
    """

    __slots__ = ("shards", "talk", "title")
    shards: Any
    talk: Talk
    title: str

    @staticmethod
    def __new__(cls, shards: Any, title: str, talk: Talk) -> WholeOnDemand:
        """Makes the tensor. title: the name of the parameter. talk: that of the processes which share it."""
        strides = torch.empty(shards.shape, device="meta").stride()
        made = torch.Tensor._make_wrapper_subclass(
            cls, shards.shape, strides=strides, dtype=shards.dtype, device=working_device(shards)
        )
        made.shards, made.talk, made.title = shards, talk, title
        if isinstance(shards, torch.nn.Parameter):
            made.requires_grad_(shards.requires_grad)
            made._is_param = True
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

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        """The shape of the tensor: its numbers are on several processes."""
        return f"WholeOnDemand({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The result of an operation on whole tensors."""
        kwargs = kwargs or {}
        wholes: dict[int, torch.Tensor] = {}

        def taken(tensor: WholeOnDemand) -> torch.Tensor:
            if id(tensor) not in wholes:
                wholes[id(tensor)] = tensor.whole()
            return wholes[id(tensor)]

        given = pytree.tree_map_only(WholeOnDemand, taken, (args, kwargs))
        made = func(*given[0], **given[1])
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = args[number] if number < len(args) else kwargs.get(argument.name)
            if isinstance(written, WholeOnDemand):
                written.write(wholes[id(written)])
                if made is wholes[id(written)]:
                    made = written
        return made


def overwrite(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Give a tensor, which may be sharded, other numbers."""
    if isinstance(tensor, WholeOnDemand):
        tensor.write(values.to(tensor.dtype))
    else:
        tensor.detach().copy_(values)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be sharded; any other is given back as it is."""
    return tensor.whole() if isinstance(tensor, WholeOnDemand) else tensor
