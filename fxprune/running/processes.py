"""Several processes that repair one model, each on its own part of the data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from fxprune.arguments import shown
from fxprune.errors import InputError, PlanError
from fxprune.on_demand import whole
from fxprune.sharded import Talk
from fxprune.sharded.talk import talk_of_group

ValueT = TypeVar("ValueT")


class Processes:
    """The processes of a group of `torch.distributed`, or this one alone.

    group: a process group, None for this process alone. All of them must make the same calls in the same order. If they
    do not, or if one has raised, all raise.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank = 0
        self._talk: Talk | None = None
        if group is not None:
            try:
                self._talk = talk_of_group(group)
                self.rank = self._talk.rank
            except (ValueError, TypeError, AttributeError, RuntimeError) as error:
                why = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                do = "call `torch.distributed.init_process_group` first, and pass `torch.distributed.group.WORLD`"
                raise InputError(
                    "there is no such process group", at=f"process_group={shown(group)}", why=why, do=do
                ) from None

    def all(self, value: ValueT, *, what: str = "") -> list[ValueT]:
        """The values of all processes, in the order of their ranks. what: says what it is for, the same on all."""
        if self._talk is None:
            return [value]
        self._talk.say(f"exchanging {what or 'a ' + type(value).__name__}")
        return self._talk.all(value)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Add tensors over all processes, in place."""
        if self._talk is not None:
            for tensor in tensors:
                self._talk.say(f"adding a tensor {tuple(tensor.shape)} of {tensor.dtype}")
                made = tensor.to(self._talk.device).contiguous()
                with self._talk.answered():
                    torch.distributed.all_reduce(made, group=self.group)
                if made is not tensor:
                    tensor.copy_(made)

    def agree(self, removed: Mapping[str, Any]) -> None:
        """Raises `PlanError` on all processes if they did not choose the same channels."""
        plans = self.all({name: dict(dims) for name, dims in removed.items()}, what="plans")
        other = next((rank for rank, theirs in enumerate(plans) if theirs != plans[0]), None)
        if other is not None:
            names = sorted({*plans[0], *plans[other]})
            first = next(name for name in names if plans[0].get(name) != plans[other].get(name))
            raise PlanError(
                "the processes do not agree on a plan",
                at=f'"{first}"',
                why=f"process 0 and process {other} chose other channels, so their weights, data or seeds differ",
                do="give all processes the same weights, the same arguments and the same seed",
            )

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Lets all processes finish what is done here, or raise."""
        with contextlib.nullcontext() if self._talk is None else self._talk.together():
            yield

    def sums(self, totals: dict[str, Tensor], count: int) -> tuple[dict[str, Tensor], int]:
        """Totals by name and their number over all processes. A process that lacks a name adds zeros."""
        shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for theirs in self.all({name: (tensor.shape, tensor.dtype) for name, tensor in totals.items()}, what="sums"):
            shapes |= theirs
        found = {
            name: totals.get(name, torch.zeros(shape, dtype=dtype)) for name, (shape, dtype) in sorted(shapes.items())
        }
        self.add(found.values())
        return found if self.group is not None else totals, sum(self.all(count))

    def first(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the numbers of the first one, in place."""
        if self._talk is not None:
            source = torch.distributed.get_global_rank(self.group, 0)
            for tensor in tensors:
                self._talk.say(f"taking over a tensor {tuple(tensor.shape)} of {tensor.dtype}")
                made = whole(tensor).to(self._talk.device).contiguous()
                with self._talk.answered():
                    torch.distributed.broadcast(made, source, group=self.group)
                if made is not tensor:
                    tensor.copy_(made)


ALONE = Processes()
"""This process alone."""
