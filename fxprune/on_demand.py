"""Tensors whose numbers are elsewhere, and in memory only while an operation works on them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils import _pytree as pytree


class OnDemand(torch.Tensor):
    """Stands for a tensor that is elsewhere: it has its shape, and no numbers.

    Each operation on it gets the whole tensor, works on it, and drops it. What an operation writes into it goes back.

    title: its name, for errors. It counts as a parameter where the other one is one.
    """

    __slots__ = ("title",)
    title: str

    def whole(self) -> torch.Tensor:
        """The whole tensor, in memory of its own."""
        raise NotImplementedError

    def spread(self, values: torch.Tensor) -> OnDemand:
        """A tensor of the same kind with these values, which are put where those of this one are."""
        raise NotImplementedError

    def write(self, values: torch.Tensor) -> None:
        """Takes these values."""
        raise NotImplementedError

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        """The shape of the tensor: its numbers are elsewhere."""
        return f"{type(self).__name__}({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The result of an operation on whole tensors."""
        kwargs = kwargs or {}
        wholes: dict[int, torch.Tensor] = {}

        def taken(tensor: OnDemand) -> torch.Tensor:
            if id(tensor) not in wholes:
                wholes[id(tensor)] = tensor.whole()
            return wholes[id(tensor)]

        given = pytree.tree_map_only(OnDemand, taken, (args, kwargs))
        made = func(*given[0], **given[1])
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = args[number] if number < len(args) else kwargs.get(argument.name)
            if isinstance(written, OnDemand):
                written.write(wholes[id(written)])
                if made is wholes[id(written)]:
                    made = written
        return made


def placeholder(
    kind: Any, shape: torch.Size, dtype: torch.dtype, device: torch.device | str, parameter: torch.Tensor | None
) -> Any:
    """A tensor of a subclass of `OnDemand`, dense and without numbers.

    parameter: the tensor that it stands for, if that is a parameter.
    """
    strides = [math.prod(max(size, 1) for size in shape[dim + 1 :]) for dim in range(len(shape))]
    make: Any = torch.Tensor._make_wrapper_subclass
    made = make(kind, shape, strides=strides, dtype=dtype, device=device)
    if parameter is not None:
        made.requires_grad_(parameter.requires_grad)
        made._is_param = True
    return made


def overwrite(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Give a tensor, which may be elsewhere, other numbers."""
    if isinstance(tensor, OnDemand):
        tensor.write(values.to(tensor.dtype))
    else:
        tensor.detach().copy_(values)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be elsewhere; any other is given back as it is."""
    return tensor.whole() if isinstance(tensor, OnDemand) else tensor
