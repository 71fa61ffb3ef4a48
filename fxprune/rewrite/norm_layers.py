"""Norm layers that count a width of their own, for models in which a norm keeps the statistic of its original width."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.ops import Operand
from fxprune.ops.leaves import LeafCall, leaf
from fxprune.ops.normalization import default_eps


class _Counting(nn.Module):
    """A norm layer that counts a width of its own, by default that of its shape."""

    width: int
    normalized_shape: tuple[int, ...]

    def __init__(self, normalized_shape: Any, *args: Any, width: int | None = None, **kwargs: Any) -> None:
        super().__init__(normalized_shape, *args, **kwargs)
        self.width = math.prod(self.normalized_shape) if width is None else width

    def extra_repr(self) -> str:
        """The shape, and the width that is counted."""
        return f"{super().extra_repr()}, width={self.width}"


class LayerNorm(_Counting, nn.LayerNorm):
    """Layer norm over `width` slots, of which those that `normalized_shape` does not count are zero.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean = sum_i x_i / N and
    var = (sum_i (x_i - mean)^2 + (N - N') mean^2) / N, sums over the N' slots that are there, N = `width`: each of the
    others is 0 and adds (0 - mean)^2 (Ba et al. 2016, equation 4;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.LayerNorm.html).

    weight, bias: of `normalized_shape`, or given with the call.

    >>> import torch
    >>> x = torch.tensor([[1.0, -2.0, 4.0]])
    >>> layer = LayerNorm(3, width=5)
    >>> wide = torch.nn.functional.layer_norm(torch.cat([x, torch.zeros(1, 2)], 1), (5,))
    >>> torch.allclose(layer(x), wide[:, :3])
    True
    """

    def forward(self, input: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The forward of `nn.LayerNorm`; a graph gives the weight and the bias of `F.layer_norm`."""
        weight, bias = (self.weight if weight is None else weight), (self.bias if bias is None else bias)
        return layer_norm(input, self.normalized_shape, weight, bias, self.eps, self.width)


class RMSNorm(_Counting, nn.RMSNorm):
    """RMS norm over `width` slots, of which those that `normalized_shape` does not count are zero.

    y = x / sqrt(sum_i x_i^2 / N + eps) * weight, N = `width` (Zhang and Sennrich 2019, equation 4;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.RMSNorm.html).

    weight: of `normalized_shape`, or given with the call.

    >>> import torch
    >>> x = torch.tensor([[1.0, -2.0, 4.0]])
    >>> layer = RMSNorm(3, width=5)
    >>> wide = torch.nn.functional.rms_norm(torch.cat([x, torch.zeros(1, 2)], 1), (5,))
    >>> torch.allclose(layer(x), wide[:, :3])
    True
    """

    def forward(self, input: Tensor, weight: Tensor | None = None) -> Tensor:
        """The forward of `nn.RMSNorm`; a graph gives the weight of `F.rms_norm`."""
        return rms_norm(input, self.normalized_shape, self.weight if weight is None else weight, self.eps, self.width)


WIDE: Mapping[type[nn.Module], Callable[..., nn.Module]] = {nn.LayerNorm: LayerNorm, nn.RMSNorm: RMSNorm}
"""Layer of torch -> the layer of this file that replaces it."""


def layer_norm(
    input: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float, width: int
) -> Tensor:
    """The formula of `LayerNorm`, over the last dimensions of `input`; half precision is computed in float32.

    It is a function, not a method, so that a symbolic trace which looks into the layer records it as one node.
    """
    dims, x = _dims(input, shape), _single(input)
    mean = x.sum(dims, keepdim=True) / width
    centred = x - mean
    squares = centred.square().sum(dims, keepdim=True) + (width - math.prod(shape)) * mean.square()
    return _affine(centred * torch.rsqrt(squares / width + eps), weight, bias).to(input.dtype)


def rms_norm(input: Tensor, shape: tuple[int, ...], weight: Tensor | None, eps: float | None, width: int) -> Tensor:
    """The formula of `RMSNorm`; if `eps` is None, with the epsilon that torch takes."""
    dims, x = _dims(input, shape), _single(input)
    squares = x.square().sum(dims, keepdim=True)
    eps = default_eps(input.dtype) if eps is None else eps
    return _affine(x * torch.rsqrt(squares / width + eps), weight, None).to(input.dtype)


fx.wrap("layer_norm")
fx.wrap("rms_norm")


def _dims(input: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    if tuple(input.shape[-len(shape) :]) != tuple(shape):
        raise RuntimeError(f"the input of shape {tuple(input.shape)} does not end with {tuple(shape)}")
    return tuple(range(-len(shape), 0))


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@leaf(LayerNorm, RMSNorm)
def _preserved(call: LeafCall, input: Operand, weight: Operand | None = None, bias: Operand | None = None) -> Operand:
    """y[.., c] = (x[.., c] - mean_c x) / sqrt(var_c x + eps) * w[c] + b[c]; removed c are counted as zero.

    An RMS norm has no mean, so removed slots stay zero in it whatever the weight is.
    """
    normalized = input.vectors[-len(shape_of(call.module)) :]
    weight = call.parameters.get("weight") if weight is None else weight
    bias = call.parameters.get("bias") if bias is None else bias
    for part in (weight, bias):
        for a, b in zip(normalized, () if part is None else part.vectors, strict=part is not None):
            call.same(a, b)
    first = input.ndim - len(normalized)
    if not all(input.zero[first:]):
        for vector in normalized:
            call.lock(vector, "counts slots that are gone as zero, which they would not be here")
    vanishes = weight is not None and all(weight.zero) and (bias is None or all(bias.zero))
    vanishes = vanishes or isinstance(call.module, nn.RMSNorm)
    return call.operand(input.vectors, [False] * first + [vanishes] * len(normalized))


def shape_of(module: Any) -> tuple[int, ...]:
    """The dimensions over which a norm layer takes its statistic."""
    return tuple(module.normalized_shape)
