"""Windows and shuffles: positions in space become channels, channels become positions, or are reordered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, carries, depends, reads, recounts, resizes
from fxprune.ops.dependence import Dependence, Seen, moved, summed
from fxprune.ops.factors import moved_factors
from fxprune.ops.module_use import Use
from fxprune.ops.python_call import Counted, PythonCall
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site
from fxprune.ops.views import SHARED, with_vectors


@rule("aten::pixel_shuffle")
def pixel_shuffle(call: Call, self: Operand, upscale_factor: int) -> Operand:
    """y[.., c, (h a), (w b)] = x[.., (c a b), h, w]"""
    r = upscale_factor
    *batch, channels, height, width = self.vectors
    c, a, b = call.split(channels, (channels.size // (r * r), r, r))
    call.lock(call.merge([a, b]), "pixel_shuffle moves these positions into space")
    fixed = [call.fixed(s) for s in call.shapes[0][-2:]]
    for vector in (height, width):
        call.lock(vector, "spatial dimension of pixel_shuffle")
    return call.operand([*batch, c, *fixed], [*self.zero[:-2], True, True])


@rule("aten::pixel_unshuffle")
def pixel_unshuffle(call: Call, self: Operand, downscale_factor: int) -> Operand:
    """y[.., (c a b), h, w] = x[.., c, (h a), (w b)]"""
    r = downscale_factor
    *batch, channels, height, width = self.vectors
    for vector in (height, width):
        call.lock(vector, "spatial dimension of pixel_unshuffle")
    merged = call.merge([channels, call.fixed(r * r)])
    return call.operand([*batch, merged, *(call.fixed(s) for s in call.shapes[0][-2:])], [*self.zero[:-2], True, True])


@rule("aten::channel_shuffle", "aten::native_channel_shuffle")
def channel_shuffle(call: Call, self: Operand, groups: int) -> Operand:
    """y[n, (c g), ..] = x[n, (g c), ..]"""
    g, c = call.split(self.dim(1), (groups, self.dim(1).size // groups))
    call.count("groups", g)
    return with_vectors(self, 1, call.merge([c, g]))


@resizes(
    *("aten::channel_shuffle", "aten::native_channel_shuffle"),
    targets=(F.channel_shuffle, torch.channel_shuffle, torch.native_channel_shuffle),
)
def channel_shuffle_sizes(site: Site) -> None:
    """The number of groups."""
    site.put(1, "groups", site.counted("groups")[0])


@reads(
    *("aten::channel_shuffle", "aten::native_channel_shuffle"),
    functions=("channel_shuffle", "native_channel_shuffle"),
)
def channel_shuffle_integers(call: PythonCall) -> Iterable[Counted]:
    """The number of groups."""
    return call.counted(call.argument(1, "groups"), "groups")


@recounts("aten::channel_shuffle", "aten::native_channel_shuffle", modules=(nn.ChannelShuffle,))
def channel_shuffle_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The number of groups."""
    groups = use.counted("groups")
    return {"groups": groups and groups[0]}


@rule("aten::im2col")
def im2col(call: Call, self: Operand) -> Operand:
    """y[n, (c k), l] = x[n, c, position(k, l)]"""
    *batch, channels, height, width = self.vectors
    for vector in (height, width):
        call.lock(vector, "spatial dimension of unfold")
    *_, rows, columns = call.shapes[0]
    merged = call.merge([channels, call.fixed(rows // channels.size)])
    return call.operand([*batch, merged, call.fixed(columns)], [*self.zero[:-2], True])


@rule("aten::col2im")
def col2im(call: Call, self: Operand) -> Operand:
    """y[n, c, position(k, l)] = sum x[n, (c k), l]"""
    *batch, rows, positions = self.vectors
    *_, channels, height, width = call.shapes[0]
    c, kernel = call.split(rows, (channels, rows.size // channels))
    call.lock(kernel, "kernel position of fold")
    call.lock(positions, "spatial dimension of fold")
    return call.operand([*batch, c, call.fixed(height), call.fixed(width)], [*self.zero[:-1], True, True])


@depends("aten::col2im", "aten::unfold_backward")
def col2im_dependence(seen: Seen) -> Dependence | list[Dependence]:
    """The dependence of sums: windows are added where they overlap."""
    return summed(seen)


@rule("aten::unfold")
def unfold(call: Call, self: Operand, dimension: int) -> Operand:
    """y[.., l, .., k] = x[.., step * l + k, ..]"""
    d = dimension % max(self.ndim, 1)
    call.lock(self.dim(d), "windows of unfold overlap this dimension")
    shape = call.shapes[0]
    vectors = [call.fixed(shape[d]) if i == d else v for i, v in enumerate(self.vectors)]
    return call.operand([*vectors, call.fixed(shape[-1])], [*self.zero, True])


absent("aten::unfold", dependence=SHARED)


@rule("aten::unfold_backward")
def unfold_backward(call: Call, grad_in: Operand, dim: int) -> Operand:
    """y[.., step * l + k, ..] = sum x[.., l, .., k]: windows are added where they overlap, as in torch.istft."""
    *windows, inside = grad_in.vectors
    d = dim % len(windows)
    for vector in (windows[d], inside):
        call.lock(vector, "windows that overlap are added along this dimension")
    vectors = [call.fixed(call.shapes[0][d]) if i == d else v for i, v in enumerate(windows)]
    call.count("input_sizes", *vectors)
    return call.operand(vectors, grad_in.zero[:-1])


@resizes("aten::unfold_backward")
def unfold_backward_sizes(site: Site) -> None:
    """The shape of the result."""
    site.put_sizes(1, "input_sizes", site.counted("input_sizes"))


@reads("aten::unfold_backward", functions=("unfold_backward",))
def unfold_backward_integers(call: PythonCall) -> Iterable[Counted]:
    """The shape of the result."""
    sizes = zip(call.sizes(1, "input_sizes"), call.result.vectors, strict=False)
    return [Counted(size, vector) for size, vector in sizes if call.marked(size)]


_SHUFFLES = ("aten::channel_shuffle", "aten::native_channel_shuffle")
_WINDOWS = ("aten::pixel_shuffle", "aten::pixel_unshuffle", "aten::im2col", "aten::col2im", "aten::unfold")
carries(*_SHUFFLES, *(name for name in _WINDOWS if name != "aten::col2im"))(moved_factors)
absent("aten::col2im", "aten::unfold_backward", factors=NO_FACTOR)
depends(*_SHUFFLES, "aten::pixel_shuffle", "aten::pixel_unshuffle", "aten::im2col")(moved)
absent(
    *_SHUFFLES,
    *_WINDOWS,
    "aten::unfold_backward",
    multiply_adds="nothing is multiplied",
    positions="no argument is a position",
    norms="it is no statistic",
)
absent(
    *_WINDOWS,
    sizes="its arguments are sizes in space, which stay",
    readers="its arguments are sizes in space, which stay",
    modules="the attributes of its module are sizes in space, which stay",
)
absent("aten::unfold_backward", modules="no module of torch is this operation")
absent(*_SHUFFLES, *_WINDOWS, "aten::unfold_backward", constants=SLOT_BY_SLOT)
