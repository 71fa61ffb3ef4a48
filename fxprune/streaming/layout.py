"""Boxes of stored tensors that are boxes of parameters.

For the library's conversions, a `MovedTensor` stands for a tensor: the functions of torch that move numbers (stack,
cat, chunk, split, transpose) give other ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fxprune.channels.groups import Ints


@dataclass(frozen=True, eq=False)
class StoredAxis:
    """A range of one dimension of a stored tensor, and the slots of a parameter's dimension that stand there.

    start, count: the range. dim: the dimension of the parameter; None if no dimension of it runs here. slots: one for
    each stored index, or `block` of them for each; the last block may be shorter.
    """

    start: int
    count: int
    dim: int | None = None
    slots: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    block: int = 1


@dataclass(frozen=True, eq=False)
class StoredPart:
    """A box of a stored tensor. axes: one for each dimension. fixed: dimension of the parameter -> its index."""

    stored: str
    parameter: str
    axes: tuple[StoredAxis, ...]
    fixed: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Box:
    """A box of a stored tensor in a value.

    axes: dimension of the stored tensor -> its indices there, in the order of the value. where: dimension of the value
    -> (dimension of the stored tensor or None, first index in the value).
    """

    stored: str
    axes: tuple[Ints, ...]
    where: tuple[tuple[int | None, int], ...]

    def count(self, dim: int) -> int:
        """The number of indices that the box has in a dimension of the value."""
        stored = self.where[dim][0]
        return 1 if stored is None else len(self.axes[stored])

    def narrowed(self, dim: int, low: int, high: int) -> _Box | None:
        """The part of the box from `low` to `high` in a dimension of the value, which begins there at 0."""
        stored, begin = self.where[dim]
        first, last = max(low - begin, 0), min(high - begin, self.count(dim))
        if first >= last:
            return None
        axes = list(self.axes)
        if stored is not None:
            axes[stored] = axes[stored][first:last]
        return replace(self, axes=tuple(axes), where=_with(self.where, dim, (stored, begin + first - low)))


def _with(items: tuple[Any, ...], position: int, value: Any) -> tuple[Any, ...]:
    return (*items[:position], value, *items[position + 1 :])


class UnknownMoveError(Exception):
    """A conversion calls a function of torch that does more than move numbers, or moves them in an unknown way."""


class MovedTensor:
    """A tensor of which only shape and origin are known: boxes of stored tensors."""

    def __init__(self, shape: Sequence[int], boxes: Sequence[_Box], dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.boxes, self.dtype = torch.Size(shape), tuple(boxes), dtype

    @classmethod
    def of(cls, stored: str, shape: Sequence[int]) -> MovedTensor:
        """The value of a whole stored tensor."""
        axes = tuple(np.arange(size) for size in shape)
        return cls(shape, [_Box(stored, axes, tuple((dim, 0) for dim in range(len(shape))))])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        move = _MOVES.get(func)
        if move is None:
            raise UnknownMoveError(f"torch.{getattr(func, '__name__', func)}")
        return move(*args, **(kwargs or {}))

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one dimension."""
        return self.shape if dim is None else self.shape[dim]

    def contiguous(self) -> MovedTensor:
        """The value itself."""
        return self

    def squeeze(self, dim: int) -> MovedTensor:
        """Without a dimension of size 1."""
        dim %= self.ndim
        if self.shape[dim] != 1:
            return self
        boxes = [replace(box, where=(*box.where[:dim], *box.where[dim + 1 :])) for box in self.boxes]
        return MovedTensor([*self.shape[:dim], *self.shape[dim + 1 :]], boxes)

    def taken(self, dim: int, order: Ints) -> MovedTensor:
        """The value with a dimension in another order. Raises `UnknownMoveError` where several tensors make it up."""
        dim %= self.ndim
        if any(box.count(dim) != self.shape[dim] or box.where[dim][0] is None for box in self.boxes):
            raise UnknownMoveError("a permutation across several tensors")
        boxes = []
        for box in self.boxes:
            stored = box.where[dim][0]
            assert stored is not None
            boxes.append(replace(box, axes=_with(box.axes, stored, box.axes[stored][order])))
        return MovedTensor(self.shape, boxes)

    def parts(self, parameter: str) -> list[StoredPart]:
        """The parts of the stored tensors, for a value that is a parameter."""
        made = []
        for box in self.boxes:
            axes: list[StoredAxis] = []
            for stored, indices in enumerate(box.axes):
                dims = [dim for dim, (origin, _) in enumerate(box.where) if origin == stored]
                if not dims:  # one index, taken out of a list of modules
                    axes.append(StoredAxis(int(indices[0]), 1))
                    continue
                start = int(indices.min())
                if not np.array_equal(np.sort(indices), np.arange(start, start + len(indices))):
                    raise UnknownMoveError("a part of a tensor with gaps")
                slots = np.empty(len(indices), np.int64)
                slots[indices - start] = np.arange(len(indices)) + box.where[dims[0]][1]
                axes.append(StoredAxis(start, len(indices), dims[0], slots))
            fixed = {dim: begin for dim, (origin, begin) in enumerate(box.where) if origin is None}
            made.append(StoredPart(box.stored, parameter, tuple(axes), fixed))
        return made


def _stack(values: Sequence[MovedTensor], dim: int = 0) -> MovedTensor:
    first = values[0]
    dim %= first.ndim + 1
    boxes = [
        replace(box, where=(*box.where[:dim], (None, number), *box.where[dim:]))
        for number, value in enumerate(values)
        for box in value.boxes
    ]
    return MovedTensor([*first.shape[:dim], len(values), *first.shape[dim:]], boxes)


def _cat(values: Sequence[MovedTensor], dim: int = 0) -> MovedTensor:
    first, boxes, position = values[0], list[_Box](), 0
    dim %= first.ndim
    for value in values:
        for box in value.boxes:
            origin, begin = box.where[dim]
            boxes.append(replace(box, where=_with(box.where, dim, (origin, begin + position))))
        position += value.shape[dim]
    return MovedTensor([*first.shape[:dim], position, *first.shape[dim + 1 :]], boxes)


def _split(value: MovedTensor, sizes: Any, dim: int = 0) -> tuple[MovedTensor, ...]:
    dim %= value.ndim
    if isinstance(sizes, int):
        whole, rest = divmod(value.shape[dim], sizes)
        sizes = [sizes] * whole + [rest] * bool(rest)
    made, position = [], 0
    for size in sizes:
        boxes = [box.narrowed(dim, position, position + size) for box in value.boxes]
        shape = [*value.shape[:dim], size, *value.shape[dim + 1 :]]
        made.append(MovedTensor(shape, [box for box in boxes if box is not None]))
        position += size
    return tuple(made)


def _chunk(value: MovedTensor, chunks: int, dim: int = 0) -> tuple[MovedTensor, ...]:
    return _split(value, -(-value.shape[dim] // chunks), dim)


def _transpose(value: MovedTensor, dim0: int, dim1: int) -> MovedTensor:
    order = list(range(value.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    boxes = [replace(box, where=tuple(box.where[dim] for dim in order)) for box in value.boxes]
    return MovedTensor([value.shape[dim] for dim in order], boxes)


_MOVES: dict[Any, Any] = {
    torch.stack: _stack,
    torch.cat: _cat,
    torch.split: _split,
    torch.chunk: _chunk,
    torch.transpose: _transpose,
}
"""Function of torch -> the same for values."""
