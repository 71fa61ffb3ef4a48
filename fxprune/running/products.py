"""The operations that multiply what they read with a weight, as sums over rows.

Each of them computes `y = x w + bias`. Written as rows, every output is a sum over the inputs that it reads:

    y[g, r, o] = sum over k of x[g, r, k] * w[g, o, k] + bias[g, o]

g: blocks, which share nothing (groups of a convolution, experts). r: positions of all samples. k: input channels and
the taps of a kernel. o: output channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fxprune.running.moving import MovingSquares, worth_moving

CHUNK = 1 << 22
"""The most numbers of gathered inputs in memory at a time."""


class Form(Protocol):
    """The way in which an operation reads its inputs."""

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [g, o, k]."""

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`: the weight of the shape that `like` has."""

    def shape(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """The shape of y."""

    def rows(self, x: Tensor, y: Tensor, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [g, r, k] and outputs [g, r, o] in float64, some rows at a time. like: the weight."""

    def moving(self, x: Tensor, like: Tensor) -> MovingSum | None:
        """A faster way to the sum over all rows of x x^T than by the rows, where there is one."""

    @property
    def out(self) -> tuple[int, int]:
        """The dimension of the output channels in the weight, and in y."""


@dataclass(frozen=True)
class Matrix:
    """A product of matrices: x [r, k], weight [k, o], y [r, o]."""

    out = (-1, -1)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [g, o, k]."""
        return weight.mT[None]

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`."""
        return matrix[0].mT

    def shape(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """The shape of y."""
        return x.shape[0], weight.shape[1]

    def rows(self, x: Tensor, y: Tensor, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and outputs, some rows at a time."""
        step = max(CHUNK // max(x.shape[-1], 1), 1)
        for some, made in zip(torch.split(x, step), torch.split(y, step), strict=True):
            yield double(some)[None], double(made)[None]

    def moving(self, x: Tensor, like: Tensor) -> None:
        """Nothing: the rows themselves are fastest."""


@dataclass(frozen=True)
class Matrices:
    """A product of stacks of matrices: x [g, r, k], weight [g, k, o], y [g, r, o]."""

    out = (-1, -1)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [g, o, k]."""
        return weight.mT

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`."""
        return matrix.mT

    def shape(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """The shape of y."""
        return *x.shape[:2], weight.shape[2]

    def rows(self, x: Tensor, y: Tensor, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and outputs, some rows at a time."""
        step = max(CHUNK // max(x.shape[0] * x.shape[2], 1), 1)
        for some, made in zip(torch.split(x, step, 1), torch.split(y, step, 1), strict=True):
            yield double(some), double(made)

    def moving(self, x: Tensor, like: Tensor) -> None:
        """Nothing: the rows themselves are fastest."""


@dataclass(frozen=True)
class Convolution:
    """A convolution: x [n, (g i), *space], weight [(g o), i, *taps], y [n, (g o), *space].

    A transposed one has weight [(g i), o, *taps]. It equals a usual convolution of x with zeros between its positions,
    by the kernel with its taps in reverse order.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    @property
    def out(self) -> tuple[int, int]:
        """The dimension of the output channels in the weight, and in y."""
        return int(self.transposed), -1 - len(self.stride)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as [g, o, k]."""
        blocks = weight.view(self.groups, -1, *weight.shape[1:])  # [g, o, i, taps], transposed [g, i, o, taps]
        if self.transposed:
            blocks = blocks.transpose(1, 2).flip(tuple(range(3, blocks.ndim)))
        return blocks.flatten(2)

    def weight(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The inverse of `matrix`."""
        if not self.transposed:
            return matrix.reshape(like.shape)
        taps = like.shape[2:]
        blocks = matrix.view(self.groups, like.shape[1], -1, *taps).flip(tuple(range(3, 3 + len(taps))))
        return blocks.transpose(1, 2).reshape(like.shape)

    def shape(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """The shape of y."""
        some, kernel = (torch.empty(tensor.shape, device="meta") for tensor in (x, weight))
        options = (self.stride, self.padding, self.dilation, self.transposed, self.output_padding, self.groups)
        return tuple(torch.ops.aten.convolution(some, kernel, None, *options).shape)

    def rows(self, x: Tensor, y: Tensor, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and outputs, some rows at a time."""
        taps = like.shape[2:]
        batched = x if x.ndim == 2 + len(taps) else x[None]
        made = y if y.ndim == 2 + len(taps) else y[None]
        per_sample = made[0, 0].numel() * math.prod(taps) * batched.shape[1]
        step = max(CHUNK // max(per_sample, 1), 1)
        for some, outputs in zip(torch.split(batched, step), torch.split(made, step), strict=True):
            patches = self._patches(self._padded(double(some), taps), taps)  # [n, c, taps, positions]
            n, channels, count, places = patches.shape
            gathered = patches.view(n, self.groups, channels // self.groups, count, places)
            inputs = gathered.permute(1, 0, 4, 2, 3).reshape(self.groups, n * places, -1)
            kept = double(outputs).view(n, self.groups, -1, places).permute(1, 0, 3, 2)
            yield inputs, kept.reshape(self.groups, n * places, -1)

    def moving(self, x: Tensor, like: Tensor) -> MovingSum | None:
        """A sum by differences, which needs what a kernel reads first when it moves on; None where that is too much."""
        taps = like.shape[2:]
        places = self.shape(x, like)[-len(taps) :]
        steps = [dim for dim, step in enumerate(self.stride) if self.transposed or step == 1]
        at = max(steps, key=lambda dim: taps[dim], default=None)
        return None if at is None or not worth_moving(taps[at], places[at]) else MovingSum(self, at, taps)

    def lines(self, x: Tensor, taps: Sequence[int], at: int) -> Iterator[Tensor]:
        """The inputs of the taps along one dimension, [g, n, f, length] in float64, some samples at a time.

        n: samples and the positions of the other dimensions. f: channels and the other taps.
        """
        batched = x if x.ndim == 2 + len(taps) else x[None]
        others = [1 if dim == at else size for dim, size in enumerate(taps)]
        step = max(CHUNK // max(math.prod(batched.shape[1:]) * math.prod(others), 1), 1)
        for some in torch.split(batched, step):
            padded = self._padded(double(some), taps)
            patches = self._patches(padded, others)  # [n, c, other taps, (positions)]
            n, channels, count = patches.shape[:3]
            sizes = [
                len(range(0, size - self._reach(dim, others), self._step(dim)))
                for dim, size in enumerate(padded.shape[2:])
            ]
            moved = patches.view(n, channels, count, *sizes).movedim(3 + at, -1)
            blocks = moved.reshape(n, self.groups, channels // self.groups, count, -1, sizes[at])
            yield blocks.permute(1, 0, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)

    def _reach(self, dim: int, taps: Sequence[int]) -> int:
        """The distance from the first tap to the last one."""
        return self.dilation[dim] * (taps[dim] - 1)

    def _step(self, dim: int) -> int:
        return self.stride[dim] if not self.transposed else 1

    def _padded(self, x: Tensor, taps: Sequence[int]) -> Tensor:
        """The input with its zeros around it; of a transposed convolution also with those between its positions."""
        if not self.transposed:
            around = [(p, p) for p in self.padding]
        else:
            reach = [d * (t - 1) for d, t in zip(self.dilation, taps, strict=True)]
            sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], self.stride, strict=True)]
            spread = x.new_zeros(*x.shape[:2], *sizes)
            places: tuple[Any, ...] = (..., *(slice(None, None, step) for step in self.stride))
            spread[places] = x
            x = spread
            around = [(r - p, r - p + o) for r, p, o in zip(reach, self.padding, self.output_padding, strict=True)]
        return F.pad(x, [side for pair in reversed(around) for side in pair])

    def _patches(self, x: Tensor, taps: Sequence[int]) -> Tensor:
        """The inputs that each position reads, [n, channels, taps, positions]."""
        for dim in range(len(taps)):
            x = x.unfold(2 + dim, self._reach(dim, taps) + 1, self._step(dim))[..., :: self.dilation[dim]]
        count = len(taps)  # [n, channels, *positions, *taps]
        order = (0, 1, *range(2 + count, 2 + 2 * count), *range(2, 2 + count))
        return x.permute(order).flatten(2, 1 + count).flatten(3)


class MovingSum:
    """The sum over all rows of x x^T, [g, k, k], of a convolution, by differences along the dimension `at`."""

    def __init__(self, form: Convolution, at: int, taps: Sequence[int]) -> None:
        self.form, self.at, self.taps = form, at, tuple(taps)
        self._squares = MovingSquares(taps[at], form.dilation[at])

    def add(self, x: Tensor) -> None:
        """Add the inputs of a call."""
        for lines in self.form.lines(x, self.taps, self.at):
            self._squares.add(lines)

    def total(self) -> Tensor:
        """The sum over all calls, in the order of `Form.matrix`."""
        made, taps = self._squares.total(), self.taps  # [g, (c, other taps, tap), ...]
        if all(size == 1 for dim, size in enumerate(taps) if dim != self.at):
            return made
        others = [size for dim, size in enumerate(taps) if dim != self.at]
        order = torch.arange(made.shape[1], device=made.device).view(-1, *others, taps[self.at])
        order = order.movedim(-1, 1 + self.at).flatten()
        return made[:, order][:, :, order]


@dataclass(frozen=True)
class WeightProduct:
    """One call of such an operation, with its tensors."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    form: Form


Reader = Callable[[Mapping[str, Any]], "WeightProduct | None"]

READERS: dict[str, Reader] = {}
"""The operations by name. Each function gives the product of a call, from its arguments by name."""


def reads(*names: str) -> Callable[[Reader], Reader]:
    """Put a function into `READERS` under these names."""

    def register(function: Reader) -> Reader:
        READERS.update(dict.fromkeys(names, function))
        return function

    return register


@reads("aten::mm")
def mm(call: Mapping[str, Any]) -> WeightProduct:
    """y[r, o] = x[r, k] w[k, o]"""
    return WeightProduct(call["self"], call["mat2"], None, Matrix())


@reads("aten::addmm")
def addmm(call: Mapping[str, Any]) -> WeightProduct | None:
    """y[r, o] = bias[o] + x[r, k] w[k, o]; with other factors than 1 it is no such product."""
    plain = call.get("beta", 1) == 1 and call.get("alpha", 1) == 1
    return WeightProduct(call["mat1"], call["mat2"], call["self"], Matrix()) if plain else None


@reads("aten::bmm")
def bmm(call: Mapping[str, Any]) -> WeightProduct:
    """y[g, r, o] = x[g, r, k] w[g, k, o]"""
    return WeightProduct(call["self"], call["mat2"], None, Matrices())


@reads("aten::linear")
def linear(call: Mapping[str, Any]) -> WeightProduct | None:
    """y[r, o] = bias[o] + x[r, k] w[o, k]"""
    x = call["input"]
    return WeightProduct(x.flatten(0, -2) if x.ndim > 1 else x[None], call["weight"].mT, call.get("bias"), Matrix())


@reads("aten::convolution", "aten::mkldnn_convolution", "aten::_convolution")
def convolution(call: Mapping[str, Any]) -> WeightProduct:
    """y[n, (g o), p] = bias[(g o)] + sum over i, taps of x[n, (g i), stride * p + tap] w[(g o), i, tap]"""
    space = call["weight"].ndim - 2

    def each(name: str, default: int) -> tuple[int, ...]:
        given = list(call.get(name) or [default])
        return tuple(given * space if len(given) == 1 else given)

    form = Convolution(
        each("stride", 1),
        each("padding", 0),
        each("dilation", 1),
        bool(call.get("transposed", False)),
        each("output_padding", 0),
        int(call.get("groups", 1)),
    )
    return WeightProduct(call["input"], call["weight"], call.get("bias"), form)


def double(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU if its device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)
