"""The reference of what is dropped: the original, whose additions have zeros instead of one operand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.process_state import module_hooks
from fxprune.depth.calls import Addition, Calls, adds


class DroppedAdditions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The mode in which some additions have zeros instead of one of their operands: the reference of what is dropped.

    operands: addition -> the numbers of the operands.
    """

    def __init__(self, model: nn.Module, operands: Mapping[Addition, frozenset[int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls, self._operands = Calls(model), operands
        self.met: set[Addition] = set()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Run with the mode on."""

        def before(module: nn.Module, args: Any) -> None:
            self._calls.enter(module)

        def after(module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
            self._calls.leave(module)

        with module_hooks(before, after), self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if adds(func, args):
            place = self._calls.next_addition()
            if place in self._operands:
                self.met.add(place)
                for operand in sorted(self._operands[place], reverse=True):
                    args = _with_zeros(func, args, operand)
        return func(*args, **(kwargs or {}))


def _with_zeros(func: Any, args: Any, operand: int) -> tuple[Any, ...]:
    if operand == 0 and func._schema.name.endswith("_"):
        args[0].zero_()  # what is added into
        return tuple(args)
    zeros = torch.zeros_like(args[operand])
    return (*args[:operand], zeros, *args[operand + 1 :])
