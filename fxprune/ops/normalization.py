"""Normalizations: weight, bias and statistics are removed with their channel.

Where a statistic is taken over several channels, removing one of them changes it, and the dimension is marked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import batchnorm, instancenorm

from fxprune.channels.vector import Vector
from fxprune.ops.aspects import absent, carries, depends, reads, reads_constants, recounts, resizes, respells
from fxprune.ops.constants import Read, Sum, Whole
from fxprune.ops.dependence import Dependence, Seen, Settled, constant_planes, depends_anywhere, either, over
from fxprune.ops.factors import Asked, Way, column, fitted, is_one, possible, reduced
from fxprune.ops.module_use import Use
from fxprune.ops.python_call import Counted, PythonCall
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site
from fxprune.ops.statistic import StatisticNode

if TYPE_CHECKING:
    from torch import fx

_BATCH_NORMS = (
    "aten::native_batch_norm",
    "aten::_native_batch_norm_legit",
    "aten::_native_batch_norm_legit_no_training",
    "aten::cudnn_batch_norm",
    "aten::miopen_batch_norm",
    "aten::_batch_norm_with_update",
)


@rule(*_BATCH_NORMS)
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
    centred = input.zero[1] and not any(isinstance(b, Operand) and not b.zero[0] for b in buffers[:1])
    zero[1] = centred if weight is None else weight.zero[0] and (bias is None or bias.zero[0])
    outputs = [call.operand(input.vectors, zero)]
    for shape in call.shapes[1:]:
        vectors = [channels if size == channels.size else call.fixed(size) for size in shape]
        outputs.append(call.operand(vectors, False))
    return outputs


@depends(*_BATCH_NORMS, "aten::batch_norm", "aten::_batch_norm_no_update", "aten::_batch_norm_impl_index")
def batch_norm_dependence(seen: Seen) -> list[Dependence | Settled]:
    """Depends where x does and the weight is not zero.

    Without running statistics, a channel depends unless x is one constant in it. If this call changes the running
    statistics, everything depends, since they are others in evaluation.
    """
    x, weight = seen["input"], seen["weight"]
    rest = seen.func._schema.returns[1:]
    if seen.raw.get("running_mean") is None:
        settled = _of_statistic(seen, lambda t: t.transpose(0, 1).flatten(1)[None, :, None])
        return [settled.view(1, -1, *(1,) * (x.ndim - 2)), *(True for _ in rest)]
    if seen.func._schema.name == "aten::_batch_norm_with_update" or seen.raw.get("training", False):
        return [True, *(True for _ in rest)]
    made: Dependence = seen.of(x)
    if weight is not None and made is not False:
        scale = (weight != 0).view(-1, *(1,) * (x.ndim - 2))
        made = scale if isinstance(made, bool) else made & scale
    return [made, *(False for _ in rest)]


def _of_statistic(seen: Seen, form: Callable[[torch.Tensor], torch.Tensor]) -> Settled:
    """The dependence of y[n, g, i, s] = (x - mean_{i, s} x) / sqrt(var_{i, s} x + eps) * w[(g i)] + b[(g i)].

    form: a function that brings a tensor of the input's shape to [n, g, i, s]. A channel i of group g is constant if
    each channel of the group is one constant over s, or if its weight is zero. Its numbers are computed here from one
    position s, without the rounding of a mean over all of them.
    """
    weight, bias = (seen.raw.get(name) for name in ("weight", "bias"))
    x = form(seen["input"])
    flags = torch.as_tensor(seen.of(seen["input"]), device=x.device)
    varies = form(flags.expand(seen["input"].shape)).any(3) | ~constant_planes(x.flatten(0, 2)).view(x.shape[:3])
    made = varies.any(2, keepdim=True).expand(varies.shape)
    values = x[..., 0] - x[..., 0].mean(2, keepdim=True)
    values = values / (values.square().mean(2, keepdim=True) + seen.raw.get("eps", seen.raw.get("epsilon"))).sqrt()
    for part in (weight, bias):
        if part is not None and depends_anywhere(seen.of(part)):
            made = torch.ones_like(made)
    if weight is not None:
        made = made & (weight != 0).view(x.shape[1:3])
        values = torch.where(made, values, values * weight.view(x.shape[1:3]))
        values = torch.where((weight == 0).view(x.shape[1:3]), torch.zeros_like(values), values)
    if bias is not None:
        values = values + bias.view(x.shape[1:3])
    return Settled(made, values)


@recounts(*_BATCH_NORMS, modules=(batchnorm._BatchNorm, instancenorm._InstanceNorm))
def batch_norm_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The number of channels, from the weight, the statistics or the input."""
    for tensor in (module.weight, module.running_mean):
        if tensor is not None:
            return {"num_features": tensor.shape[0]}
    if use.input is None:
        return {}
    batched = isinstance(module, batchnorm._BatchNorm) or use.input.ndim > module._get_no_batch_dim()
    return {"num_features": use.input_size(1 if batched else 0)}


absent(
    *_BATCH_NORMS,
    sizes="no argument is a size",
    readers="no argument is a size",
    norms="every channel has a statistic of its own",
    constants="every channel has a statistic of its own",
)


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
        outputs.append(call.operand(kept[:first] + [call.fixed(s) for s in shape[first:]], False))
    return outputs


@depends("aten::native_layer_norm", "aten::layer_norm", "aten::_fused_rms_norm", "aten::rms_norm")
def layer_norm_dependence(seen: Seen) -> list[Dependence]:
    """Everything depends if anything does, except where the weight is zero."""
    x, weight = seen["input"], seen["weight"]
    made: Dependence = any(depends_anywhere(seen.of(t)) for t in seen.tensors)
    if made and weight is not None and seen.of(weight) is False:
        made = torch.as_tensor(weight != 0).expand(x.shape)
    return [made, *(True for _ in seen.func._schema.returns[1:])]


@reads_constants("aten::native_layer_norm", "aten::layer_norm", "aten::_fused_rms_norm", "aten::rms_norm")
def layer_norm_constants(seen: Seen) -> list[Read]:
    """The whole input: the statistic changes with its slots."""
    return [Whole(seen.tensors[:1])]


@resizes("aten::native_layer_norm", "aten::layer_norm", targets=(F.layer_norm, torch.layer_norm))
def layer_norm_sizes(site: Site) -> None:
    """The sizes of the dimensions that the statistic runs over."""
    site.put_sizes(1, "normalized_shape", site.counted("normalized_shape"))


@reads("aten::native_layer_norm", "aten::layer_norm", functions=("layer_norm",))
def layer_norm_integers(call: PythonCall) -> Iterable[Counted]:
    """Each integer of the shape counts one of the last dimensions."""
    shape = call.argument(1, "normalized_shape")
    return map(Counted, shape, call.result.vectors[-len(shape) :])


@recounts("aten::native_layer_norm", "aten::layer_norm", modules=(nn.LayerNorm,))
def layer_norm_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The shape, from the weight or the last dimensions of the input."""
    if module.weight is not None:
        return {"normalized_shape": tuple(module.weight.shape)}
    if use.input is None:
        return {}
    return {"normalized_shape": use.removal.shape(use.input.vectors[-len(module.normalized_shape) :])}


@respells("aten::native_layer_norm", "aten::layer_norm", targets=(F.layer_norm, torch.layer_norm))
def wide_layer_norm(statistic: StatisticNode) -> fx.Node:
    """Replace it by a layer that counts the original width."""
    eps, input = statistic.argument(4, "eps"), statistic.argument(0, "input")
    weight, bias = statistic.argument(2, "weight"), statistic.argument(3, "bias")
    return statistic.layer(nn.LayerNorm, 1e-5 if eps is None else eps, input, weight, bias)


@rule("aten::native_group_norm")
def group_norm(call: Call, input: Operand, weight: Operand | None, bias: Operand | None, group: int) -> list[Operand]:
    """y[n, (g i), s] = (x - mean_{i, s} x) / sqrt(var_{i, s} x + eps) * w[(g i)] + b[(g i)];  g counts `group`.

    Removing whole groups is exact; removing a position inside the groups changes their statistic.
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
    statistics = [call.operand([input.dim(0), g], False) for _ in call.shapes[1:]]
    return [call.operand(input.vectors, zero), *statistics]


@depends("aten::native_group_norm")
def group_norm_dependence(seen: Seen) -> list[Dependence | Settled]:
    """A group depends, unless x is one constant in each channel of it."""
    x, groups = seen["input"], seen["group"]
    made = _of_statistic(seen, lambda t: t.reshape(t.shape[0], groups, t.shape[1] // groups, -1))
    return [made.view(*x.shape[:2], *(1,) * (x.ndim - 2)), True, True]


@resizes("aten::native_group_norm")
def native_group_norm_sizes(site: Site) -> None:
    """The sizes of batch, channels and space, and the number of groups."""
    for position, name in enumerate(("N", "C", "HxW", "group"), start=3):
        site.put(position, name, site.counted(name)[0])


@resizes("aten::group_norm", targets=(F.group_norm, torch.group_norm))
def group_norm_sizes(site: Site) -> None:
    """The number of groups."""
    site.put(1, "num_groups", site.counted("group")[0])


@reads("aten::native_group_norm", functions=("group_norm",))
def group_norm_integers(call: PythonCall) -> Iterable[Counted]:
    """The number of groups."""
    return call.counted(call.argument(1, "num_groups"), "group")


@recounts("aten::native_group_norm", modules=(nn.GroupNorm,))
def group_norm_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The numbers of groups and channels."""
    groups, channels = use.counted("group"), use.counted("C")
    return {"num_groups": groups and groups[0], "num_channels": channels and channels[0]}


absent(
    "aten::native_group_norm",
    norms="its statistic is that of the channels that are left in a group",
    constants="a group has a statistic of its own; part of a group is inexact",
)


@rule("aten::_fused_rms_norm", "aten::rms_norm")
def rms_norm(call: Call, input: Operand, normalized_shape: Sequence[int], weight: Operand | None) -> Sequence[Operand]:
    """y[.., c] = x[.., c] / sqrt(mean_c x^2 + eps) * w[c]"""
    return layer_norm(call, input, normalized_shape, weight, None)


@resizes("aten::_fused_rms_norm", "aten::rms_norm", targets=(F.rms_norm, torch.rms_norm))
def rms_norm_sizes(site: Site) -> None:
    """The sizes of the dimensions that the statistic runs over."""
    count = len(site.value(site.argument(1, "normalized_shape")))
    site.put_sizes(1, "normalized_shape", site.removal.shape(site.input.vectors[-count:]))


reads("aten::_fused_rms_norm", "aten::rms_norm", functions=("rms_norm",))(layer_norm_integers)
recounts("aten::_fused_rms_norm", "aten::rms_norm", modules=(nn.RMSNorm,))(layer_norm_attributes)


@respells("aten::_fused_rms_norm", "aten::rms_norm", targets=(F.rms_norm, torch.rms_norm))
def wide_rms_norm(statistic: StatisticNode) -> fx.Node:
    """Replace it by a layer that counts the original width."""
    eps, input = statistic.argument(3, "eps"), statistic.argument(0, "input")
    return statistic.layer(nn.RMSNorm, eps, input, statistic.argument(2, "weight"))


@carries("aten::native_layer_norm", "aten::layer_norm", "aten::_fused_rms_norm", "aten::rms_norm")
def layer_norm_factors(asked: Asked) -> list[Way]:
    """Weight and bias carry it; nothing before the norm can, since it adds an epsilon."""
    if asked["weight"] is None or not all(map(is_one, asked.factors[1:])):
        return []
    named = [name for name in ("weight", "bias") if asked.raw.get(name) is not None]
    return possible(lambda: {name: fitted(asked.factor, asked[name].shape) for name in named})


@carries(*_BATCH_NORMS, "aten::native_group_norm")
def channel_norm_factors(asked: Asked) -> list[Way]:
    """Weight and bias of a channel carry it."""
    if asked["weight"] is None or not all(map(is_one, asked.factors[1:])):
        return []
    channels = column(asked.factor, 1)
    return [{name: channels for name in ("weight", "bias") if asked[name] is not None}]


@rule("aten::_weight_norm_interface", "aten::_weight_norm")
def weight_norm(call: Call, v: Operand, g: Operand, dim: int) -> list[Operand]:
    """w[o, i] = g[o] * v[o, i] / |v[o, :]|: removing an i is exact; an o of zeros gives 0 / 0 in the reference."""
    call.same(v.dim(dim), g.dim(dim))
    call.mark(v.dim(dim), "weight_norm divides by the norm of what is removed")
    for d, vector in enumerate(v.vectors):
        if d != dim % v.ndim and not v.zero[d]:
            call.mark(vector, "weight_norm takes a norm over values that are not zero where the channel is gone")
    norms = [
        call.operand([n if n.size == s else call.fixed(s) for n, s in zip(g.vectors, shape, strict=True)])
        for shape in call.shapes[1:]
    ]
    return [call.operand(v.vectors, v.zero), *norms]


@depends("aten::_weight_norm_interface", "aten::_weight_norm")
def weight_norm_dependence(seen: Seen) -> list[Dependence]:
    """Depends where g or any element v[o, :] does."""
    v, g, dim = seen["v"], seen["g"], seen["dim"]
    rows = over(seen.of(v), v, [d for d in range(v.ndim) if d != dim % v.ndim])
    return [either(rows, seen.of(g)), *(True for _ in seen.func._schema.returns[1:])]


@reads_constants("aten::_weight_norm_interface", "aten::_weight_norm")
def weight_norm_constants(seen: Seen) -> list[Read]:
    """A sum over all dimensions but one."""
    v, dim = seen["v"], seen["dim"]
    return [Sum(v, d) for d in range(v.ndim) if d != dim % v.ndim]


@carries("aten::_weight_norm_interface", "aten::_weight_norm")
def weight_norm_factors(asked: Asked) -> list[Way]:
    """g carries it; the length of v does not count."""
    rows = [d for d in range(asked.factor.ndim) if d != asked["dim"] % asked.factor.ndim]
    return [{"g": reduced(asked.factor, rows)}] if all(map(is_one, asked.factors[1:])) else []


absent(
    *("aten::_weight_norm_interface", "aten::_weight_norm"),
    sizes="no argument is a size",
    readers="no argument is a size",
    modules="the layer with the weight counts",
    norms="the norm of a weight's rows is that of what is left",
)


def default_eps(dtype: torch.dtype) -> float:
    """The epsilon that torch takes in an RMS norm without one, for an input of this type.

    >>> default_eps(torch.float64), default_eps(torch.bfloat16) == default_eps(torch.float32)
    (2.220446049250313e-16, True)
    """
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


absent(
    *_BATCH_NORMS,
    *("aten::native_layer_norm", "aten::layer_norm", "aten::native_group_norm", "aten::_fused_rms_norm"),
    *("aten::rms_norm", "aten::_weight_norm_interface", "aten::_weight_norm"),
    multiply_adds="normalization is not counted",
    positions="no argument is a position",
)
