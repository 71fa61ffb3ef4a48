"""The dimensions for which a function was given a size that does not fit, so that it raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fxprune.capture.scopes import Key
from fxprune.proof.shapes import ShapeCheck, not_adapted

_OPERATIONS = {
    **dict.fromkeys(("view", "reshape", "unflatten"), "aten::view"),
    **dict.fromkeys(("expand", "broadcast_to"), "aten::expand"),
    **dict.fromkeys(("split", "split_with_sizes"), "aten::split_with_sizes"),
}
"""The name of a function -> the operation that it runs, whose result, or results, have the sizes that it is given."""


class RefusedSizes(TorchFunctionMode):
    """A function mode that notes why the last function raised, such as `x.view(n, 2, 4)` for 6 numbers.

    check: knows what the analysis has promised.
    operation, places: the operation that was refused, None if it is not known, and where sizes are wrong: the number of
        the result, and the dimension.
    """

    def __init__(self, check: ShapeCheck) -> None:
        super().__init__()
        self.check = check
        self.operation: Key | None = None
        self.places: tuple[tuple[int, int], ...] = ()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        operation = _OPERATIONS.get(name)
        splits = operation == "aten::split_with_sizes"
        if operation is None or (kwargs and not splits):
            return func(*args, **(kwargs or {}))
        scope = self.check.scopes.current
        key = (scope.name, scope.number, operation, scope.operations[operation] + 1)
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            if splits:
                self._note_split(key, *_sections(*args, **(kwargs or {})))
                raise
            self._note(key, _unflattened(*args) if name == "unflatten" else _listed(args[1:]))
            raise

    def _note(self, key: Key, sizes: Sequence[Any]) -> None:
        promised = self.check.expected.outputs.get(key)
        if promised is None or len(promised) != 1 or len(promised[0].vectors) != len(sizes):
            return
        if all(size is None or isinstance(size, int) for size in sizes):
            wanted = [None if size in (None, -1) else int(size) for size in sizes]
            wrong = not_adapted(promised[0].vectors, wanted, self.check.removal)
            self.operation, self.places = key, tuple((0, dim) for dim in wrong)

    def _note_split(self, key: Key, sizes: Sequence[Any], dim: int) -> None:
        """Note the results of a split whose sizes are wrong."""
        promised = self.check.expected.outputs.get(key, [])
        if len(promised) != len(sizes) or not all(type(size) is int for size in sizes):
            return
        dim %= len(promised[0].vectors)
        wrong = not_adapted([operand.vectors[dim] for operand in promised], sizes, self.check.removal)
        self.operation, self.places = key, tuple((number, dim) for number in wrong)


def _listed(sizes: tuple[Any, ...]) -> Sequence[Any]:
    """The sizes that a function was called with, one by one or as a list."""
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def _unflattened(tensor: torch.Tensor, dim: Any, sizes: Any) -> Sequence[Any]:
    """The sizes that `unflatten` was called with, None for the dimensions that it leaves."""
    if not isinstance(dim, int) or not isinstance(sizes, (tuple, list)):
        return ()
    before = dim % tensor.ndim
    return (*[None] * before, *sizes, *[None] * (tensor.ndim - before - 1))


def _sections(
    tensor: torch.Tensor, split_size: Any = (), dim: int = 0, *, split_size_or_sections: Any = (), split_sizes: Any = ()
) -> tuple[Sequence[Any], int]:
    """The sizes that `split` was called with, under any of the names of its argument, and the dimension."""
    given = split_size or split_size_or_sections or split_sizes
    return (given if isinstance(given, (tuple, list)) else ()), dim
