"""Coactivation and correlation of the two ends of every connection of a layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.arguments import checks_names, fits
from fxprune.criteria.window_products import fits as fits_products
from fxprune.criteria.window_products import window_counts
from fxprune.errors import InputError, PlanError

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""The layers whose weight has one element per connection between an input and an output channel."""

EXACT = 2**24
"""The largest number up to which float32 holds every integer (IEEE 754: 24 bits of significand)."""

CHUNK = 2**23
"""The most correlations in memory at a time: 32 MiB in float32."""


@dataclass(frozen=True)
class Geometry:
    """The position of a connection's input, in numbers that operators take.

    padding: zeros on both sides of each dimension. margins: padding of another kind before that, last dimension
    first and before / after, as `F.pad` takes it; empty where nothing does. mode: how the margins are filled.
    A linear layer has no dimensions: all are empty.
    """

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    margins: tuple[int, ...] = ()
    mode: str = "constant"


def geometry_of(layer: Layer) -> Geometry:
    """The geometry of a convolution, or that of a linear layer."""
    if isinstance(layer, nn.Linear):
        return Geometry()
    plain = Geometry(layer.stride, (0,) * len(layer.kernel_size), layer.dilation, layer.groups)
    if layer.padding_mode != "zeros":
        return replace(plain, margins=tuple(layer._reversed_padding_repeated_twice), mode=layer.padding_mode)
    if layer.padding == "valid":
        return plain
    if layer.padding == "same":  # an odd number of zeros has one more of them behind
        spread = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return replace(plain, margins=tuple(n for all in reversed(spread) for n in (all // 2, all - all // 2)))
    return replace(plain, padding=tuple(int(p) for p in layer.padding))


@checks_names
def coactivation(input: Tensor, output: Tensor, layer: Layer, threshold: float = 0.0) -> Tensor:
    """C[o, i, k] = sum over n, s of [x[n, i, stride * s + dilation * k - padding] > t] * [y[n, o, s] > t].

    How often the input and the output of each connection are active together, over the batch and all positions: the
    gradient of the weight of the convolution between the two maps of zeros and ones, in one call of the operator
    that computes it. t = 0 is sigmoid > 0.5. A zero that padding adds is never active; what circular, reflecting or
    replicating padding adds is active where its source is. NaN is not active. The weight's values are not read.

    Args:
        input: x, [n, c_in, *spatial] or without n; [..., in_features] for a linear layer.
        output: y, what the layer made of it (or what came after, of the same shape).
        layer: nn.Conv1d, nn.Conv2d, nn.Conv3d with any stride, padding, dilation and groups, or nn.Linear.
        threshold: t.

    Returns counts as int64, of the weight's shape. They are exact: sums of zeros and ones are exact in float32 up to
    2^24 summands, and float64 is used where a weight is applied more often. Maps of the sizes of input and output are
    held meanwhile; and for convolutions without groups on a CPU, which count in bytes, the inputs of all connections of
    some examples: 4 MiB, or those of one example.

    Raises `PlanError` for another layer or threshold, `InputError` for tensors that do not fit the layer.

    >>> layer = nn.Linear(2, 2)
    >>> x, y = torch.tensor([[1.0, -1.0], [2.0, 3.0]]), torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    >>> coactivation(x, y, layer)
    tensor([[2, 1],
            [1, 1]])
    """
    check_layer(layer)
    check_threshold(threshold)
    x, y = _checked(input, output, layer)
    return count(x, y, layer.weight.shape, threshold, geometry_of(layer))


@torch.no_grad()
def count(x: Tensor, y: Tensor, shape: torch.Size, threshold: float, geometry: Geometry) -> Tensor:
    """`coactivation` of tensors that are known to fit a weight of this shape: [n, c, *spatial], [..., features]."""
    summands = y.numel() // shape[0]
    if geometry.stride and geometry.mode == "constant" and summands < 2**31 and fits_products(x, geometry.groups):
        return _counts_in_bytes(x, y, shape, threshold, geometry)
    dtype = torch.float32 if summands <= EXACT else torch.float64
    with torch.autocast(x.device.type, enabled=False):  # half precision would round the counts of a matrix product
        a, b = (x.detach() > threshold).to(dtype), (y.detach() > threshold).to(dtype)
        if not geometry.stride:
            return (b.reshape(-1, shape[0]).mT @ a.reshape(-1, shape[1])).round_().to(torch.int64)
        if a.is_cuda:  # the Winograd and Fourier algorithms of cuDNN round
            with torch.backends.cudnn.flags(enabled=False):
                return _weight_gradient(a, b, shape, geometry)
        return _weight_gradient(a, b, shape, geometry)


def _counts_in_bytes(x: Tensor, y: Tensor, shape: torch.Size, threshold: float, geometry: Geometry) -> Tensor:
    g = geometry
    a, b = (x.detach() > threshold).view(torch.int8), (y.detach() > threshold).view(torch.int8)
    around = g.margins or [n for p in reversed(g.padding) for n in (p, p)]
    a = F.pad(a, around) if any(around) else a
    return window_counts(a, b, shape[2:], g.stride, g.dilation).to(torch.int64)


def _weight_gradient(a: Tensor, b: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    g = geometry
    a = F.pad(a, g.margins, mode=g.mode) if any(g.margins) else a
    weight = a.new_empty(1).expand(shape)  # only its shape counts
    _, gradient, _ = torch.ops.aten.convolution_backward(
        b, a, weight, None, g.stride, g.padding, g.dilation, False, (0,) * len(g.stride), g.groups, (False, True, False)
    )
    counts: Tensor = gradient.round_().to(torch.int64)
    return counts


@torch.no_grad()
@checks_names
def correlation(input: Tensor, output: Tensor, layer: Layer) -> Tensor:
    """R[o, i, k] = mean over s of |r_n(x[n, i, stride * s + dilation * k - padding], y[n, o, s])|, in [0, 1].

    r_n is Pearson's correlation over the batch: cov / (std * std), with the same divisor in all three (n or n - 1
    cancels). Where one of the two does not vary over the batch r is 0 instead of 0 / 0: so it is where the input is a
    zero of the padding. The arguments are those of `coactivation`, with a batch of at least 2; the dimensions of a
    linear layer's input between the first and the last are positions.

    Returns a tensor of the weight's shape; half precision is computed in float32. Beside the normalised input and
    output, the inputs of all connections and their correlations are held for as many rows of positions as make up 2^23
    correlations (32 MiB in float32), and for one row at least.

    >>> layer = nn.Linear(2, 1)
    >>> x = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    >>> correlation(x, -2 * x[:, :1], layer)
    tensor([[1.0000, 0.0000]])
    """
    check_layer(layer)
    x, y = _checked(input, output, layer)
    n = len(x)
    unbatched = input.ndim != x.ndim
    if n < 2 or unbatched or input.ndim < 2:
        raise InputError(
            "a correlation over the batch needs a batch of at least 2",
            why=f"the input has shape {tuple(input.shape)}",
            do="pass several examples, the batch as the first dimension",
        )
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    shape, g = layer.weight.shape, geometry_of(layer)
    with torch.autocast(x.device.type, enabled=False):
        x, y = _normalized(x.to(dtype)), _normalized(y.to(dtype))
        if isinstance(layer, nn.Linear):
            x, y = x.reshape(n, -1, shape[1]).mT, y.reshape(n, -1, shape[0]).mT
            g = Geometry((1,), (0,), (1,))
            shape = torch.Size((*shape, 1))
        windows = _windows(x, shape, g)  # [n, c_in, *out, *kernel], a view
        dims = len(g.stride)
        rows = max(1, CHUNK // (math.prod(shape) * math.prod(y.shape[3:])))
        total = x.new_zeros(g.groups, shape[0] // g.groups, math.prod(shape[1:]))
        for window, part in zip(torch.split(windows, rows, 2), torch.split(y, rows, 2), strict=True):
            window = torch.unflatten(window, 1, (g.groups, -1)).flatten(3, 2 + dims).flatten(4)  # [n, g, i, s, k]
            part = torch.unflatten(part, 1, (g.groups, -1)).flatten(3)  # [n, g, o, s]
            together = torch.einsum("ngisk,ngos->gsoik", window, part)
            total += together.flatten(3).abs_().sum(1)
        return (total / math.prod(y.shape[2:])).reshape(layer.weight.shape)


def _normalized(x: Tensor) -> Tensor:
    """(x - mean) / |x - mean| over the batch, 0 where x is the same in the whole batch."""
    varies = x.amax(0) != x.amin(0)  # exact, where a rounded mean would leave a deviation of an ulp
    centred = x - x.mean(0)
    norm = centred.square().sum(0).sqrt()
    return torch.where(varies & (norm != 0), centred / norm, 0.0)


def _windows(x: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
    """The input of every connection at every position, [n, c_in, *out, *kernel]: strides over the padded input."""
    around = [n for p in reversed(geometry.padding) for n in (p, p)]
    for margins, mode in ((geometry.margins, geometry.mode), (around, "constant")):
        x = F.pad(x, margins, mode=mode) if any(margins) else x
    for dim, (step, apart, size) in enumerate(zip(geometry.stride, geometry.dilation, shape[2:], strict=True), 2):
        x = x.unfold(dim, apart * (size - 1) + 1, step)[..., ::apart]
    return x


def check_layer(layer: Any) -> None:
    """Refuse what has no weight with one element per connection."""
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise PlanError(
            f"the connections of {type(layer).__name__} cannot be counted",
            do="pass an nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d",
        )
    if nn.parameter.is_lazy(layer.weight):
        raise PlanError(
            f"{type(layer).__name__} was never run, its shape is not known", do="run it once on a real input"
        )


def check_threshold(threshold: Any) -> None:
    """Refuse a threshold that is no finite number."""
    if not fits(threshold, float) or not math.isfinite(threshold):
        raise PlanError(
            f"threshold must be a finite number, not {threshold!r}", do="pass threshold=0.0 or another number"
        )


def _checked(input: Any, output: Any, layer: Layer) -> tuple[Tensor, Tensor]:
    """Input and output with a batch. Raises `InputError` where they do not fit the layer."""
    for name, tensor in (("input", input), ("output", output)):
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"{name} must be a tensor, not {type(tensor).__name__}", do="pass the tensor that the layer got or made"
            )
        if tensor.is_complex():
            raise InputError(
                f"{name} is complex",
                why="complex numbers have no order",
                do="pass its real and its imaginary part, or its absolute values",
            )
    if input.device != output.device:
        raise InputError(
            "input and output are on several devices",
            why=f"input on {input.device}, output on {output.device}",
            do="move both to one device",
        )
    x, y = (input, output) if isinstance(layer, nn.Linear) else (_batched(input, layer), _batched(output, layer))
    expected = _shape_after(x.shape, layer)
    if expected is None or tuple(y.shape) != expected:
        raise InputError(
            "input and output do not belong to the layer",
            at=str(layer),
            why=f"their shapes are {tuple(input.shape)} and {tuple(output.shape)}"
            + (f", after this input the output is {expected}" if expected else ""),
            do="pass what the layer was given and what it returned",
        )
    if not y.numel():
        raise InputError(
            "there is nothing to count",
            why=f"the shape of the output is {tuple(output.shape)}",
            do="pass the output of the layer for at least one input",
        )
    return x, y


def _batched(x: Tensor, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Tensor:
    return x[None] if x.ndim == len(layer.kernel_size) + 1 else x


def _shape_after(shape: torch.Size, layer: Layer) -> tuple[int, ...] | None:
    """The shape of the layer's output for an input of this shape, None if the input does not fit."""
    if isinstance(layer, nn.Linear):
        return (*shape[:-1], layer.out_features) if len(shape) and shape[-1] == layer.in_features else None
    if len(shape) != len(layer.kernel_size) + 2 or shape[1] != layer.in_channels:
        return None
    g, sizes = geometry_of(layer), []
    margins = g.margins or (0, 0) * len(g.stride)
    for dim, (size, step, apart) in enumerate(zip(layer.kernel_size, g.stride, g.dilation, strict=True)):
        before, after = margins[2 * (len(g.stride) - 1 - dim) :][:2]
        positions = shape[2 + dim] + before + after + 2 * g.padding[dim] - apart * (size - 1) - 1
        if positions < 0:
            return None
        sizes.append(positions // step + 1)
    return (shape[0], layer.out_channels, *sizes)
