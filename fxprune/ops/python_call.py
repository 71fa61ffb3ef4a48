"""A call of a Python function inside a module that no graph shows, as the functions of `reads` see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.channels.vector import Vector
from fxprune.ops.registry import Operand


@dataclass(frozen=True)
class Counted:
    """An integer in a call, and what it counts: `vector`, all of it or what stands before the slot `until`; or how
    often `vector` repeats the vector `under`."""

    value: Any
    vector: Vector
    until: int | None = None
    under: Vector | None = None


@dataclass(frozen=True)
class PythonCall:
    """A function, or a method, that has been called.

    made: its result. operand: the operand of a tensor. marked: whether an integer is one whose origin is looked for.
    counted_under: what the rules of the operations inside counted under a name.
    """

    args: Sequence[Any]
    kwargs: dict[str, Any]
    made: Any
    operand: Callable[[torch.Tensor], Operand]
    marked: Callable[[Any], bool]
    counted_under: Callable[[str], tuple[Vector, ...]]

    @property
    def result(self) -> Operand:
        """The operand of the result."""
        return self.operand(self.made)

    @property
    def input(self) -> Operand:
        """The operand of the tensor that the function is applied to."""
        first: Any = self.args[0] if self.args else self.kwargs.get("input", self.kwargs.get("self"))
        return self.operand(first)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def sizes(self, first: int, *names: str) -> Sequence[Any]:
        """Sizes written as one sequence or as several integers, from position `first` on."""
        given = self.args[first:] or tuple(self.kwargs[name] for name in names if name in self.kwargs)
        return given[0] if given and isinstance(given[0], (tuple, list)) else given

    def counted(self, value: Any, argument: str) -> Iterable[Counted]:
        """The integer counts what the rule of the operation counted under that name."""
        vectors = self.counted_under(argument)
        return [Counted(value, vectors[0])] if vectors else ()
