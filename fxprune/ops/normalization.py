"""Normalizations: weight, bias and statistics belong to the channel; what changes a statistic is marked."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fxprune.channels.vector import Vector
from fxprune.ops.registry import Call, Operand, rule


@rule(
    "aten::native_batch_norm",
    "aten::_native_batch_norm_legit",
    "aten::_native_batch_norm_legit_no_training",
    "aten::cudnn_batch_norm",
    "aten::miopen_batch_norm",
    "aten::_batch_norm_with_update",
)
def batch_norm(call: Call, input: Operand, weight: Operand | None, bias: Operand | None) -> list[Operand]:
    """y[n, c, s] = (x[n, c, s] - mean[c]) / sqrt(var[c] + eps) * w[c] + b[c]: every channel on its own."""
    channels = input.dim(1)
    names = ("running_mean", "running_var")
    buffers = [call.arguments.get(name) for name in names]
    for part in (weight, bias, *buffers):
        if isinstance(part, Operand):
            call.same(channels, part.dim(0))
    if call.arguments.get("training", call.arguments.get("train", False)):
        for d in (0, *range(2, input.ndim)):
            call.mark(input.dim(d), "batch statistics over this dimension")
    zero = [False] * input.ndim
    zero[1] = input.zero[1] if weight is None else weight.zero[0] and (bias is None or bias.zero[0])
    outputs = [call.operand(input.vectors, zero)]
    for shape in call.shapes[1:]:
        outputs.append(call.operand([channels if size == channels.size else call.fixed(size) for size in shape]))
    return outputs


@rule("aten::native_layer_norm", "aten::layer_norm")
def layer_norm(
    call: Call, input: Operand, normalized_shape: Sequence[int], weight: Operand | None, bias: Operand | None
) -> list[Operand]:
    """y[.., c] = (x[.., c] - mean_c x) / sqrt(var_c x + eps) * w[c] + b[c]"""
    first = input.ndim - len(normalized_shape)
    normalized = input.vectors[first:]
    for part in (weight, bias):
        if part is not None:
            for a, b in zip(normalized, part.vectors, strict=True):
                call.same(a, b)
    for vector in normalized:
        why = "layer_norm takes mean and variance over the channel"
        call.mark(vector, why, width=all(input.zero[first:]))
    call.count("normalized_shape", *normalized)
    vanishes = weight is not None and all(weight.zero) and (bias is None or all(bias.zero))
    outputs = [call.operand(input.vectors, [False] * first + [vanishes] * len(normalized))]
    for shape in call.shapes[1:]:
        kept: list[Vector] = [v if s == v.size else call.fixed(s) for v, s in zip(input.vectors, shape, strict=True)]
        outputs.append(call.operand(kept[:first] + [call.fixed(s) for s in shape[first:]]))
    return outputs


@rule("aten::native_group_norm")
def group_norm(call: Call, input: Operand, weight: Operand | None, bias: Operand | None, group: int) -> list[Operand]:
    """y[n, (g i), s] = (x - mean_{i, s} x) / sqrt(var_{i, s} x + eps) * w[(g i)] + b[(g i)];  g counts `group`.

    Whole groups go exactly; a position inside the groups changes their statistic.
    """
    channels = input.dim(1)
    for part in (weight, bias):
        if part is not None:
            call.same(channels, part.dim(0))
    g, i = call.split(channels, (group, channels.size // group))
    call.mark(i, "group_norm takes mean and variance over the channels of a group")
    for vector in input.vectors[2:]:
        call.mark(vector, "group_norm takes mean and variance over this dimension")
    call.count("group", g)
    call.count("C", channels)
    call.count("N", input.dim(0))
    call.count("HxW", call.merge(input.vectors[2:]) if input.ndim > 2 else call.fixed(1))
    zero = [False] * input.ndim
    zero[1] = weight is not None and weight.zero[0] and (bias is None or bias.zero[0])
    statistics = [call.operand([input.dim(0), g]) for _ in call.shapes[1:]]
    return [call.operand(input.vectors, zero), *statistics]


@rule("aten::_fused_rms_norm", "aten::rms_norm")
def rms_norm(call: Call, input: Operand, normalized_shape: Sequence[int], weight: Operand | None) -> Sequence[Operand]:
    """y[.., c] = x[.., c] / sqrt(mean_c x^2 + eps) * w[c]"""
    return layer_norm(call, input, normalized_shape, weight, None)


@rule("aten::_weight_norm_interface", "aten::_weight_norm")
def weight_norm(call: Call, v: Operand, g: Operand, dim: int) -> list[Operand]:
    """w[o, i] = g[o] * v[o, i] / |v[o, :]|: i goes exactly, o leaves 0 / 0 behind when it is set to zero."""
    call.same(v.dim(dim), g.dim(dim))
    call.mark(v.dim(dim), "weight_norm divides by the norm of what is removed")
    norms = [
        call.operand([n if n.size == s else call.fixed(s) for n, s in zip(g.vectors, shape, strict=True)])
        for shape in call.shapes[1:]
    ]
    return [call.operand(v.vectors, v.zero), *norms]


def default_eps(dtype: torch.dtype) -> float:
    """The epsilon of an RMS norm that names none: that of the type in which torch computes.

    >>> default_eps(torch.float64), default_eps(torch.bfloat16) == default_eps(torch.float32)
    (2.220446049250313e-16, True)
    """
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
