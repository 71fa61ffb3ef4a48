"""A call of a Python function in code that no graph shows, as functions registered with `reads` see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxprune.channels.vector import Vector
from fxprune.ops.registry import Operand


@dataclass(frozen=True)
class Counted:
    """An integer in a call, and the meaning of it: a number of slots of `vector`.

    value: the integer; or a dimension, if the function makes as many slots of `vector` as of that one.
    until: it counts only the slots before this one, as an index does; None for all.
    under: it is how often `vector` repeats this vector, as in `x.repeat(value)`; None if not.
    """

    value: Any
    vector: Vector
    until: int | None = None
    under: Vector | None = None


@dataclass(frozen=True)
class PythonCall:
    """A Python function, or a method, that has been called.

    args, kwargs: the arguments; of a method, the tensor comes first. made: the result.
    operand: a function, the operand of a tensor. marked: a function, True if an integer comes from an attribute.
    counted_under: a function, the dimensions that the operations inside counted under the name of an argument.
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
        """The sizes, whether they are given as one sequence or as several integers, from position `first` on.

        names: the keywords that the sizes may have.
        """
        given = self.args[first:] or tuple(self.kwargs[name] for name in names if name in self.kwargs)
        return given[0] if given and isinstance(given[0], (tuple, list)) else given

    def counted(self, value: Any, argument: str) -> Iterable[Counted]:
        """A `Counted` for an integer that the operation inside counted as its `argument`; nothing if it did not."""
        vectors = self.counted_under(argument)
        return [Counted(value, vectors[0])] if vectors else ()
