"""Numbers from a file into a file, cut on the way, a megabyte at a time: memory does not grow with the tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from fxprune.channels.groups import Ints
from fxprune.streaming.checkpoint import Stored, read_into
from fxprune.streaming.pieces import Output, Piece

BLOCK = 1 << 20
"""The most bytes that are read at a time, unless one row is longer; more than a cache holds is slower."""

CALL, BANDWIDTH = 5e-6, 5e9
"""The seconds that a read takes beside its bytes, and bytes per second from the page cache: small gaps are read."""

SHORT = 32
"""Runs of fewer bytes than this on average are taken one by one, longer ones are copied."""

Array = npt.NDArray[Any]
Write = Callable[[int, Any], None]

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Scratch:
    """Memory that is used again for every block of one worker."""

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[np.uint8]] = {}

    def array(self, use: str, shape: Sequence[int], kind: Any) -> Array:
        """An array with any numbers; one of the same use takes its memory again."""
        size = math.prod(shape) * np.dtype(kind).itemsize
        if use not in self._held or self._held[use].size < size:
            self._held[use] = np.empty(size, np.uint8)
        made: Array = self._held[use][:size].view(kind).reshape(shape)
        return made

    def other(self, source: Array, shape: Sequence[int]) -> Array:
        """An array of the kind of `source`, in other memory than that."""
        held = self._held.get("one")
        use = "other" if held is not None and np.may_share_memory(held, source) else "one"
        return self.array(use, shape, source.dtype)


def copy_piece(piece: Piece, output: Output, source: IO[bytes], write: Write, scratch: Scratch) -> None:
    """Read the numbers of a piece, cut them, multiply them, and write them to their places in a tensor.

    write: takes an offset in bytes from the beginning of the tensor, and the bytes.
    """
    place = _Place(output.shape, output.dtype.itemsize, write)
    known = [dim for dim in piece.dims if dim >= 0]
    if known == sorted(known):
        for start, block in blocks(piece.stored, piece.picks, source, scratch):
            made = _multiplied(block, piece, start, output.dtype)
            place.put(*_placed(piece, start, made, len(output.shape)))
        return
    whole = np.empty(piece.shape, _UNSIGNED[output.dtype.itemsize])  # other dimensions run along the memory there
    for start, block in blocks(piece.stored, piece.picks, source, scratch):
        box = tuple(slice(s, s + n) for s, n in zip(start, block.shape, strict=True))
        whole[box] = _multiplied(block, piece, start, output.dtype)
    order = [d for d in np.argsort(piece.dims, kind="stable").tolist() if piece.dims[d] >= 0]
    others = [d for d, dim in enumerate(piece.dims) if dim < 0]
    turned = np.ascontiguousarray(whole.transpose(others + order)).reshape([whole.shape[d] for d in order])
    lengths = [1] * len(output.shape)
    for dim, size in zip(sorted(known), turned.shape, strict=True):
        lengths[dim] = size
    place.put(piece.begin, turned.reshape(lengths))


def memory_of(piece: Piece) -> int:
    """The most bytes that `copy_piece` holds."""
    row = piece.stored.bytes // max(1, math.prod(piece.stored.shape[:-1]))
    known = [dim for dim in piece.dims if dim >= 0]
    whole = 0 if known == sorted(known) else 2 * math.prod(piece.shape) * piece.stored.dtype.itemsize
    return whole + max(BLOCK, row) * (12 if piece.factors else 4)


def blocks(
    stored: Stored, picks: Sequence[Ints | None], source: IO[bytes], scratch: Scratch
) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yields what is taken from a stored tensor, block by block: the first position in each dimension, and the numbers.

    The numbers are unsigned integers of the same size. They hold until the next block.
    """
    kind = _UNSIGNED[stored.dtype.itemsize]
    if not stored.shape:
        array = scratch.array("read", (1,), kind)
        read_into(source, stored.offset, _memory(array))
        yield (), array.reshape(())
        return
    taken = [np.arange(n) if p is None else p for n, p in zip(stored.shape, picks, strict=True)]
    if not all(map(len, taken)) or 0 in stored.shape:
        return
    strides = [math.prod(stored.shape[d + 1 :]) * stored.dtype.itemsize for d in range(len(stored.shape))]
    axis = next(d for d, stride in enumerate(strides) if stride <= BLOCK or d == len(strides) - 1)
    row, rest = strides[axis], stored.shape[axis + 1 :]
    step = max(1, BLOCK // max(1, row))
    for lead in itertools.product(*(range(len(t)) for t in taken[:axis])):
        base = stored.offset + sum(int(taken[d][i]) * strides[d] for d, i in enumerate(lead))
        for first in range(0, len(taken[axis]), step):
            rows = taken[axis][first : first + step]
            array = _rows(source, base, rows, row, (rest, kind), scratch)
            for dim in range(axis + 1, len(stored.shape)):
                if picks[dim] is not None:
                    array = _take(array, dim - axis, taken[dim], scratch)
            yield (*lead, first, *(0 for _ in rest)), array.reshape([1] * axis + list(array.shape))


def _rows(
    source: IO[bytes], base: int, rows: Ints, row: int, form: tuple[tuple[int, ...], Any], scratch: Scratch
) -> Array:
    """Some rows of a tensor. row: the bytes of one. form: the shape of a row, and the kind of its numbers."""
    rest, kind = form
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    low, high = int(rows.min()), int(rows.max()) + 1
    gaps = (high - low - len(rows)) * row
    if len(breaks) and (high - low) * row <= 2 * BLOCK and gaps / BANDWIDTH < len(breaks) * CALL:
        span = scratch.array("read", (high - low, *rest), kind)
        read_into(source, base + low * row, _memory(span))
        return _take(span, 0, rows - low, scratch)
    array = scratch.array("read", (len(rows), *rest), kind)
    flat = _memory(array)
    for begin, end in itertools.pairwise([0, *breaks.tolist(), len(rows)]):
        read_into(source, base + int(rows[begin]) * row, flat[begin * row : end * row])
    return array


def _take(array: Array, dim: int, indices: Ints, scratch: Scratch) -> Array:
    """Some indices of one dimension, in this order."""
    shape = (*array.shape[:dim], len(indices), *array.shape[dim + 1 :])
    out = scratch.other(array, shape)
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    run = math.prod(array.shape[dim + 1 :]) * array.itemsize * len(indices) / (len(breaks) + 1)
    if run < SHORT:
        return np.take(array, indices, axis=dim, out=out, mode="clip")
    lead = (slice(None),) * dim
    for begin, end in itertools.pairwise([0, *breaks.tolist(), len(indices)]):
        first = int(indices[begin])
        out[(*lead, slice(begin, end))] = array[(*lead, slice(first, first + end - begin))]
    return out


def _memory(array: Array) -> memoryview:
    """The memory of a contiguous array, in bytes."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # until numpy says that it is a buffer


def numbers_of(block: Array, dtype: torch.dtype) -> torch.Tensor:
    """A block as a tensor of its own type, around the same memory."""
    return torch.from_numpy(block.view({2: np.int16, 4: np.int32, 8: np.int64}.get(block.itemsize, np.uint8))).view(
        dtype
    )


def _multiplied(block: Array, piece: Piece, start: tuple[int, ...], dtype: torch.dtype) -> Array:
    """A block times its factors, in float64, rounded once to its type."""
    if not piece.factors:
        return block
    product = numbers_of(block, dtype).to(torch.float64)
    for dim, numbers in piece.factors:
        if dim is None:
            product *= float(numbers)
            continue
        own = torch.from_numpy(numbers[start[dim] : start[dim] + block.shape[dim]])
        product *= own.reshape([-1 if d == dim else 1 for d in range(block.ndim)])
    rounded = product.to(dtype).contiguous()
    made: Array = rounded.view(torch.uint8).numpy().view(block.dtype) if rounded.ndim else block
    if not rounded.ndim:
        made = rounded.reshape(1).view(torch.uint8).numpy().view(block.dtype).reshape(())
    return made


def _placed(piece: Piece, start: tuple[int, ...], block: Array, ndim: int) -> tuple[tuple[int, ...], Array]:
    """The place where a block begins in the new tensor, and the block with the dimensions of that tensor."""
    where, shape = list(piece.begin), [1] * ndim
    for dim, first, size in zip(piece.dims, start, block.shape, strict=True):
        if dim >= 0:
            where[dim] += first
            shape[dim] = size
    return tuple(where), block.reshape(shape)


class _Place:
    """The memory of a new tensor in a file. shape: of the tensor. size: of a number. write: see `copy_piece`."""

    def __init__(self, shape: tuple[int, ...], size: int, write: Write) -> None:
        self.shape, self.write = shape, write
        self.strides = [math.prod(shape[d + 1 :]) * size for d in range(len(shape))]

    def put(self, where: Sequence[int], block: Array) -> None:
        """Write a box of numbers, run by run: as far as the box is as wide as the tensor, it is one run."""
        whole = len(self.shape)
        while whole and block.shape[whole - 1] == self.shape[whole - 1]:
            whole -= 1
        lead = max(whole - 1, 0)
        block = np.ascontiguousarray(block)
        for position in np.ndindex(block.shape[:lead]):
            at = [w + p for w, p in zip(where, (*position, *[0] * (len(where) - lead)), strict=True)]
            offset = sum(a * stride for a, stride in zip(at, self.strides, strict=True))
            self.write(offset, _memory(block[position]))
