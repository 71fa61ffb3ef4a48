"""Several processes that repair one model, each on its own part of the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fxprune.arguments import shown
from fxprune.errors import InputError

ValueT = TypeVar("ValueT")


class Processes:
    """The processes of a group of `torch.distributed`, or this one alone.

    group: a process group, None for this process alone. All of them must make the same calls in the same order.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank = 0
        if group is not None:
            try:
                self.rank = torch.distributed.get_rank(group)
            except (ValueError, TypeError, AttributeError, RuntimeError) as error:
                why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                do = "call `torch.distributed.init_process_group` first, and pass `torch.distributed.group.WORLD`"
                raise InputError(
                    "there is no such process group", at=f"process_group={shown(group)}", why=why, do=do
                ) from None

    def all(self, value: ValueT) -> list[ValueT]:
        """The values of all processes, in the order of their ranks."""
        if self.group is None:
            return [value]
        found: list[Any] = [None] * torch.distributed.get_world_size(self.group)
        torch.distributed.all_gather_object(found, value, group=self.group)
        return found

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors over all processes, in place."""
        if self.group is not None:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor, group=self.group)

    def sums(self, totals: dict[str, Tensor], count: int) -> tuple[dict[str, Tensor], int]:
        """Totals by name and their number over all processes. A process that lacks a name adds zeros."""
        shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for theirs in self.all({name: (tensor.shape, tensor.dtype) for name, tensor in totals.items()}):
            shapes |= theirs
        found = {
            name: totals.get(name, torch.zeros(shape, dtype=dtype)) for name, (shape, dtype) in sorted(shapes.items())
        }
        self.add(found.values())
        return found if self.group is not None else totals, sum(self.all(count))

    def first(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the numbers of the first one, in place."""
        if self.group is not None:
            source = torch.distributed.get_global_rank(self.group, 0)
            for tensor in tensors:
                made = tensor.contiguous()
                torch.distributed.broadcast(made, source, group=self.group)
                if made is not tensor:
                    tensor.copy_(made)


ALONE = Processes()
"""This process alone."""
