"""Convolutions: a sum over the channels of each group, and over a window in space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.modules import conv

from fxprune.channels.vector import Vector
from fxprune.ops.aspects import (
    NO_FACTOR,
    absent,
    carries,
    depends,
    multiplies,
    reads,
    reads_constants,
    recounts,
    resizes,
)
from fxprune.ops.constants import Read, WeightedSum, Whole
from fxprune.ops.contraction import NOT_ZERO
from fxprune.ops.dependence import Dependence, Seen, along
from fxprune.ops.factors import Asked, Way, column, possible, reduced
from fxprune.ops.macs import Dims
from fxprune.ops.module_use import Use, stored_weight
from fxprune.ops.python_call import Counted, PythonCall
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site

_CONVOLUTIONS = ("aten::convolution", "aten::_convolution", "aten::convolution_overrideable")
_NAMES = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@rule(*_CONVOLUTIONS)
def convolution(
    call: Call,
    input: Operand,
    weight: Operand,
    bias: Operand | None,
    stride: Sequence[int],
    padding: Sequence[int],
    transposed: bool,
    groups: int,
) -> Operand:
    """y[n, (g o), s'] = sum_{i, k} w[(g o), i, k] * x[n, (g i), s + k] + b[(g o)];  g counts `groups`.

    Transposed: y[n, (g o), s'] = sum_{i, k} w[(g i), o, k] * x[n, (g i), s - k] + b[(g o)].

    A window of one slot that moves slot by slot leaves the slots of its dimension as they are.
    """
    spatial = weight.ndim - 2
    channel = input.ndim - 1 - spatial  # 1, or 0 for an input without batch
    before = input.vectors[channel + 1 :]
    space = _space(call, before, weight.vectors[2:], stride, padding)
    call.fix(*weight.vectors[2:])
    into = summed = input.dim(channel)
    if groups == 1:
        call.same(into, weight.dim(0 if transposed else 1))
        out = weight.dim(1 if transposed else 0)
        call.count("groups", call.fixed(1))
    elif transposed:
        call.same(into, weight.dim(0))
        g, summed = call.split(into, (groups, into.size // groups))
        out = call.merge([g, weight.dim(1)])
        call.count("groups", g)
    else:
        g, summed = call.split(into, (groups, into.size // groups))
        h, _ = call.split(weight.dim(0), (groups, weight.dim(0).size // groups))
        call.same(g, h)
        call.same(summed, weight.dim(1))
        out = weight.dim(0)
        call.count("groups", g)
    if not input.zero[channel] and not weight.zero[0 if transposed else 1]:
        call.mark(summed, NOT_ZERO)
    zero = weight.zero[1 if transposed else 0]
    if bias is not None:
        call.same(out, bias.dim(0))
        zero = zero and bias.zero[0]
    zeros = [vanishes and bias is None for vanishes in input.zero]
    vanish = [z or new is not old for z, old, new in zip(zeros[channel + 1 :], before, space, strict=True)]
    return call.operand([*input.vectors[:channel], out, *space], [*zeros[:channel], zero, *vanish])


def _space(
    call: Call, before: Sequence[Vector], window: Sequence[Vector], stride: Sequence[int], padding: Sequence[int]
) -> list[Vector]:
    """The dimensions of the output in space. Those of the input are locked, but where the window is a single slot.

    before: the dimensions of the input. window: those of the weight.
    """
    sizes = call.shapes[0][-len(before) :]
    found = []
    for i, (vector, size) in enumerate(zip(before, sizes, strict=True)):
        if window[i].size == stride[i % len(stride)] == 1 and padding[i % len(padding)] == 0 and size == vector.size:
            found.append(vector)
        else:
            call.lock(vector, "spatial dimension of a convolution")
            found.append(call.fixed(size))
    return found


@depends(*_CONVOLUTIONS, "aten::cudnn_convolution")
def convolution_dependence(seen: Seen) -> Dependence:
    """An output channel depends if an input channel does that it reads with a weight that is not zero."""
    x, w, bias = seen.tensors[0], seen["weight"], seen.raw.get("bias")
    if seen.of(w) is not False or (bias is not None and seen.of(bias) is not False):
        return True
    space, groups = w.ndim - 2, seen["groups"]
    channels = along(seen.of(x), x, -1 - space).view(groups, -1)
    live = torch.as_tensor(w != 0).flatten(2).any(2)
    if seen.raw.get("transposed", False):
        made = (live.view(*channels.shape, -1) & channels[:, :, None]).any(1)
    else:
        made = (live.view(groups, -1, live.shape[1]) & channels[:, None, :]).any(2)
    return made.reshape(-1, *(1,) * space)


@reads_constants(*_CONVOLUTIONS, "aten::cudnn_convolution")
def convolution_constants(seen: Seen) -> list[Read]:
    """A weighted sum over the channels of a group; nothing is known if the weight depends on the inputs."""
    x, w, bias = seen.tensors[0], seen["weight"], seen.raw.get("bias")
    if seen.of(w) is not False:
        return [Whole(seen.tensors)]
    space, groups, transposed = w.ndim - 2, seen["groups"], seen.raw.get("transposed", False)
    columns, extra = w.flatten(2), seen.raw.get("output_padding", [0] * space)
    options = (seen["stride"], seen["padding"], seen["dilation"], transposed, extra, groups)
    return [
        WeightedSum(
            x,
            x.ndim - space - 1,
            columns.transpose(0, 1) if transposed else columns,
            w.shape[1] * groups if transposed else w.shape[0],
            bias,
            weight=w,
            out=-1 - space,
            blocks=groups,
            transposed=transposed,
            padded=any(seen["padding"]) or transposed,
            apply=lambda x: torch.convolution(x, w, None, *options),
        )
    ]


@multiplies(*_CONVOLUTIONS)
def convolution_products(input: Dims, weight: Dims, out: Dims, transposed: bool) -> list[Dims]:
    """n (g o) i k s': the whole weight at each position s' of the output; of the input if transposed"""
    spatial = len(weight) - 2
    places = input if transposed else out
    return [(*input[: len(input) - spatial - 1], *weight, *places[len(places) - spatial :])]


@resizes(*_CONVOLUTIONS)
def convolution_sizes(site: Site) -> None:
    """The number of groups."""
    site.put(8, "groups", site.counted("groups")[0])


@resizes(
    *(f"aten::{name}" for name in _NAMES), targets=[getattr(module, name) for module in (F, torch) for name in _NAMES]
)
def python_convolution_sizes(site: Site) -> None:
    """The number of groups, unless the written one, or the default 1, is right."""
    groups = site.counted("groups")[0]
    if site.value(site.argument(6, "groups", 1)) != groups:
        site.put(6, "groups", groups)


@reads(*_CONVOLUTIONS, functions=_NAMES)
def convolution_integers(call: PythonCall) -> Iterable[Counted]:
    """The number of groups."""
    return call.counted(call.argument(6, "groups", 1), "groups")


@recounts(*_CONVOLUTIONS, modules=(conv._ConvNd,))
def convolution_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The number of groups as the operation counted it, and channels from the sizes of the weight."""
    groups = (use.counted("groups") or (module.groups,))[0]
    first, second = stored_weight(module).shape[:2]
    if module.transposed:
        return {"groups": groups, "in_channels": first, "out_channels": second * groups}
    return {"groups": groups, "out_channels": first, "in_channels": second * groups}


@carries(*_CONVOLUTIONS)
def convolution_factors(asked: Asked) -> list[Way]:
    """The weight carries it, or the input where all outputs have one; and so does the bias."""
    weight, factor = asked["weight"], asked.factor
    spatial, transposed = len(weight.shape) - 2, asked["transposed"]
    outputs = column(factor, -1 - spatial)
    bias = {} if asked["bias"] is None else {"bias": outputs}

    def of_weight() -> Way:
        if transposed and asked["groups"] > 1:
            return {"weight": reduced(outputs, [0]).reshape((1,) * len(weight.shape)), **bias}
        return {"weight": outputs.reshape(*((1, -1) if transposed else (-1, 1)), *(1,) * spatial), **bias}

    return possible(of_weight, lambda: {"input": reduced(factor, range(factor.ndim)), **bias})


@rule("aten::cudnn_convolution")
def cudnn_convolution(
    call: Call, self: Operand, weight: Operand, padding: Sequence[int], stride: Sequence[int], groups: int
) -> Operand:
    """y[n, (g o), s'] = sum_{i, k} w[(g o), i, k] * x[n, (g i), s + k]"""
    return convolution(call, self, weight, None, stride, padding, False, groups)


@multiplies("aten::cudnn_convolution")
def cudnn_convolution_products(self: Dims, weight: Dims, out: Dims) -> list[Dims]:
    """n (g o) i k s'"""
    return convolution_products(self, weight, out, False)


@resizes("aten::cudnn_convolution")
def cudnn_convolution_sizes(site: Site) -> None:
    """The number of groups."""
    site.put(5, "groups", site.counted("groups")[0])


_BACKWARD = "aten::convolution_backward"


@rule(_BACKWARD)
def convolution_backward(
    call: Call,
    grad_output: Operand,
    input: Operand,
    weight: Operand,
    bias_sizes: Sequence[int] | None,
    transposed: bool,
    groups: int,
    output_mask: Sequence[bool],
) -> list[Operand]:
    """The gradients of a convolution, those of `input`, `weight` and the bias, as far as `output_mask` asks for them.

    dx[n, (g i), s] = sum_{o, k} w[(g o), i, k] * dy[n, (g o), s - k];  g counts `groups`.
    dw[(g o), i, k] = sum_{n, s'} dy[n, (g o), s'] * x[n, (g i), s' + k];  db[(g o)] = sum_{n, s'} dy[n, (g o), s'].

    Transposed: the weight is w[(g i), o, k], and -k is k.
    """
    call.fix(*weight.vectors[2:])
    for vector in (*grad_output.vectors[2:], *input.vectors[2:]):
        call.lock(vector, "spatial dimension of a convolution")
    out, into = grad_output.dim(1), input.dim(1)
    of_out, of_into = (1, 0) if transposed else (0, 1)
    if groups == 1:
        call.same(out, weight.dim(of_out))
        call.same(into, weight.dim(of_into))
        call.count("groups", call.fixed(1))
    else:
        g, o = call.split(out, (groups, out.size // groups))
        h, i = call.split(into, (groups, into.size // groups))
        call.same(g, h)
        call.same(into if transposed else out, weight.dim(0))
        call.same(o if transposed else i, weight.dim(1))
        call.count("groups", g)
    call.same(grad_output.dim(0), input.dim(0))
    call.count("bias_sizes", *(out for size in bias_sizes or () if size))
    if output_mask[0] and not (grad_output.zero[1] or weight.zero[of_out]):
        call.lock(out, NOT_ZERO)
    if (output_mask[1] or output_mask[2]) and not grad_output.zero[0]:
        call.lock(grad_output.dim(0), NOT_ZERO)
    space = len(weight.shape) - 2
    zeros = (grad_output.zero[1], input.zero[1])
    made = (
        call.operand(input.vectors, [grad_output.zero[0], weight.zero[of_into], *(True,) * space]),
        call.operand(weight.vectors, [*(zeros[::-1] if transposed else zeros), *(True,) * space]),
        call.operand([out], [grad_output.zero[1]]),
    )
    return [operand for operand, asked in zip(made, output_mask, strict=True) if asked]


@depends(_BACKWARD)
def convolution_backward_dependence(seen: Seen) -> Dependence:
    """Everything depends: the results are sums of products of all that enters."""
    return True


@reads_constants(_BACKWARD)
def convolution_backward_constants(seen: Seen) -> list[Read]:
    """Everything: the results are sums of products."""
    return [Whole(seen.tensors)]


@multiplies(_BACKWARD)
def convolution_backward_products(
    grad_output: Dims, input: Dims, weight: Dims, transposed: bool, output_mask: Sequence[bool]
) -> list[Dims]:
    """n (g o) i k s' for each of the first two gradients, as the convolution itself"""
    return convolution_products(input, weight, grad_output, transposed) * sum(output_mask[:2])


@resizes(_BACKWARD)
def convolution_backward_sizes(site: Site) -> None:
    """The number of groups, and the size of the bias."""
    site.put(9, "groups", site.counted("groups")[0])
    if sizes := site.counted("bias_sizes"):
        site.put_sizes(3, "bias_sizes", sizes)


@reads(_BACKWARD, functions=("convolution_backward",))
def convolution_backward_integers(call: PythonCall) -> Iterable[Counted]:
    """The number of groups."""
    return call.counted(call.argument(9, "groups"), "groups")


absent(
    _BACKWARD,
    positions="no argument is a position",
    norms="it is no statistic",
    factors=NO_FACTOR,
    modules="no module of torch calls it",
)
absent(*_CONVOLUTIONS, "aten::cudnn_convolution", positions="no argument is a position", norms="it is no statistic")
absent("aten::cudnn_convolution", factors=NO_FACTOR)
absent("aten::cudnn_convolution", readers="no function of torch's own calls it", modules="no module of torch calls it")
