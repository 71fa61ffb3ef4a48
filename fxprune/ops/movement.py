"""Data movement: the same movement is done to the vectors, so there is nothing to describe but which dimension moves.

Views follow a small algebra: stretches of dimensions with equal products are merged, then split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fxprune.channels.vector import Vector
from fxprune.ops.registry import Call, Operand, rule


def reshape(call: Call, operand: Operand, shape: Sequence[int]) -> Operand:
    """[.., a, b, ..] -> [.., (a b), ..] and back, stretch by stretch of equal products."""
    vectors: list[Vector] = []
    zero: list[bool] = []
    start = 0
    source = operand.shape
    if 0 in source or 0 in shape:
        for vector in operand.vectors:
            call.lock(vector, "view of an empty tensor")
        return call.operand([call.fixed(s) for s in shape])
    position = 0
    while position < len(shape) or start < len(source):
        stop, end = start, position
        have, want = 1, 1
        while True:  # the shortest stretches [start, stop) and [position, end) with equal products
            if have < want or (have == want == 1 and end == position and stop < len(source) and source[stop] == 1):
                have *= source[stop]
                stop += 1
            elif want < have or end == position:
                if end == len(shape):  # trailing source dimensions of size 1
                    stop = len(source)
                    break
                want *= shape[end]
                end += 1
            else:
                break
        merged = call.merge(operand.vectors[start:stop]) if stop > start else call.fixed(1)
        vectors += call.split(merged, shape[position:end])
        zero += [all(operand.zero[start:stop])] * (end - position)
        start, position = stop, end
    return call.operand(vectors, zero)


@rule(
    "aten::view",
    "aten::_unsafe_view",
    "aten::reshape",
    "aten::_reshape_alias",
    "aten::flatten",
    "aten::unflatten",
    labels="keep",
)
def view(call: Call, self: Operand) -> Operand:
    """y[(a b)] = x[a, b], and back"""
    made = reshape(call, self, call.shapes[0])
    if "size" in call.arguments:
        call.count("size", *made.vectors)
    return made


@rule("aten::as_strided")
def as_strided(call: Call, self: Operand, stride: Sequence[int]) -> Operand | list[Operand]:
    """y = x where size and strides are those of x; anything else is refused."""
    shape = call.shapes[0]
    kept = zip(shape, stride, call.raw["self"].stride(), strict=False)
    if shape == self.shape and all(new == old for size, new, old in kept if size > 1):
        call.count("size", *self.vectors)
        return self
    return call.refuse([self], "as_strided reads memory in an order of its own")


@rule("aten::permute", "aten::transpose", "aten::t", "aten::numpy_T", "aten::movedim", "aten::swapaxes", labels="keep")
def permute(call: Call, self: Operand) -> Operand:
    """y[i, j] = x[j, i]"""
    arguments, n = call.arguments, self.ndim
    if "dims" in arguments:
        order = [d % n for d in arguments["dims"]]
    else:
        order = list(range(n))
        a, b = (arguments["dim0"], arguments["dim1"]) if "dim0" in arguments else (0, n - 1)
        if n:
            order[a % n], order[b % n] = b % n, a % n
    return call.operand([self.vectors[d] for d in order], [self.zero[d] for d in order])


@rule("aten::squeeze", labels="keep")
def squeeze(call: Call, self: Operand) -> Operand:
    """y[i] = x[i, 0]"""
    dims = call.arguments.get("dim", range(self.ndim))
    drop = {d % self.ndim for d in ([dims] if isinstance(dims, int) else dims) if self.shape[d] == 1}
    keep = [d for d in range(self.ndim) if d not in drop]
    return call.operand([self.vectors[d] for d in keep], [self.zero[d] for d in keep])


@rule("aten::unsqueeze", labels="keep")
def unsqueeze(call: Call, self: Operand, dim: int) -> Operand:
    """y[i, 0] = x[i]"""
    d = dim % (self.ndim + 1)
    vectors, zero = list(self.vectors), list(self.zero)
    return call.operand([*vectors[:d], call.fixed(1), *vectors[d:]], [*zero[:d], True, *zero[d:]])


@rule("aten::view_as_complex")
def view_as_complex(call: Call, self: Operand) -> Operand:
    """y[i] = x[i, 0] + x[i, 1] i"""
    call.lock(self.dim(-1), "real and imaginary part of a complex number")
    return replace(self, -1)


@rule("aten::view_as_real")
def view_as_real(call: Call, self: Operand) -> Operand:
    """y[i, 0], y[i, 1] = real and imaginary part of x[i]"""
    return call.operand([*self.vectors, call.fixed(2)], [*self.zero, True])


@rule("aten::expand", labels="keep")
def expand(call: Call, self: Operand) -> Operand:
    """y[i, j] = x[j]: a new dimension is only a number, so its slots are free."""
    vectors, zero = _expanded(call, self, call.shapes[0])
    call.count("size", *vectors)
    return call.operand(vectors, zero)


@rule("aten::repeat", "aten::tile", labels="keep")
def repeat(call: Call, self: Operand, repeats: Sequence[int]) -> Operand:
    """y[(r i)] = x[i]; a dimension of size 1 is expanded."""
    pad = len(repeats) - self.ndim
    vectors, zero = [], []
    for d, times in enumerate(repeats):
        old = self.vectors[d - pad] if d >= pad else call.fixed(1)
        if old.size == 1:
            vectors.append(call.fresh(times))
            zero.append(False)
        else:
            vectors.append(old if times == 1 else call.terms.cat([old] * times))
            zero.append(self.zero[d - pad])
    return call.operand(vectors, zero)


def _expanded(call: Call, operand: Operand, shape: Sequence[int]) -> tuple[list[Vector], list[bool]]:
    vectors, zero = [], []
    for d, size in enumerate(shape, start=-len(shape)):
        old = operand.vectors[d] if operand.ndim >= -d else call.fixed(1)
        stays = old.size == size
        vectors.append(old if stays else call.fresh(size))
        zero.append(operand.zero[d] if stays and operand.ndim >= -d else False)
    return vectors, zero


def replace(operand: Operand, dim: int, *vectors: Vector) -> Operand:
    """The operand with dimension `dim` replaced by `vectors` (none drops it)."""
    d = dim % operand.ndim
    zero = operand.zero[:d] + (operand.zero[d],) * len(vectors) + operand.zero[d + 1 :]
    return Operand(operand.vectors[:d] + vectors + operand.vectors[d + 1 :], zero)


@rule("aten::flip", labels="keep")
def flip(call: Call, self: Operand, dims: Sequence[int]) -> Operand:
    """y[i] = x[n - 1 - i]"""
    made = self
    for d in dims:
        made = replace(made, d, made.dim(d).take(slice(None, None, -1)))
    return made


@rule("aten::rot90")
def rot90(call: Call, self: Operand, k: int, dims: Sequence[int]) -> Operand:
    """y[i, j] = x[j, n - 1 - i], k times"""
    a, b = (d % self.ndim for d in dims)
    vectors, zero = list(self.vectors), list(self.zero)
    for _ in range(k % 4):
        vectors[a], vectors[b] = vectors[b].take(slice(None, None, -1)), vectors[a]
        zero[a], zero[b] = zero[b], zero[a]
    return call.operand(vectors, zero)


@rule("aten::roll", labels="keep")
def roll(call: Call, self: Operand, shifts: Sequence[int], dims: Sequence[int]) -> Operand:
    """y[(i + s) mod n] = x[i]"""
    if not dims:
        for vector in self.vectors:
            call.lock(vector, "roll over all dimensions at once")
        return call.constant()
    made = self
    for s, d in zip(shifts, dims, strict=True):
        vector = made.dim(d)
        call.positions.append(("shifts", (dims.index(d), s), vector))
        made = replace(made, d, vector.take(np.roll(np.arange(vector.size), s)))
    return made


@rule("aten::slice", labels="keep")
def slice_(call: Call, self: Operand, dim: int, start: int | None, end: int | None, step: int) -> Operand:
    """y[i] = x[start + step * i]. With step > 1 whole periods of the dimension can go, so that the step stays."""
    vector = self.dim(dim)
    if step == 1:
        call.position("start", vector)
        call.position("end", vector)
    first, last, step = slice(start, end, step).indices(vector.size)
    if vector.fixed:
        return replace(self, dim, call.fixed(call.shapes[0][dim]))
    if step == 1:
        return self if last - first == vector.size else replace(self, dim, vector.take(slice(first, last)))
    if vector.size % step or first >= step or last <= vector.size - step + first:
        call.lock(vector, f"slice with step {step} that covers no whole number of periods")
        return replace(self, dim, call.fixed(call.shapes[0][dim]))
    periods, phases = call.split(vector, (vector.size // step, step))
    call.lock(phases, f"slice with step {step}: the positions inside a period stay")
    return replace(self, dim, periods)


@rule("aten::narrow", labels="keep")
def narrow(call: Call, self: Operand, dim: int, start: int, length: int) -> Operand:
    """y[i] = x[start + i]"""
    call.position("start", self.dim(dim))
    return replace(self, dim, self.dim(dim).take(slice(start, start + length)))


@rule("aten::select", labels="keep")
def select(call: Call, self: Operand, dim: int, index: int) -> Operand:
    """y = x[index]; that slot stays."""
    vector = self.dim(dim)
    call.position("index", vector)
    at = index % vector.size
    call.lock(vector.take(slice(at, at + 1)), "select takes this single position")
    return replace(self, dim)


@rule("aten::unbind", labels="keep")
def unbind(call: Call, self: Operand, dim: int) -> list[Operand]:
    """y_i = x[i]; every slot stays."""
    call.lock(self.dim(dim), "unbind takes every position on its own")
    return [replace(self, dim)] * len(call.shapes)


@rule(
    *("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::tensor_split"),
    *("aten::unsafe_split", "aten::unsafe_split_with_sizes", "aten::unsafe_chunk"),
    labels="keep",
)
def split(call: Call, self: Operand, dim: int) -> list[Operand]:
    """y_k[i] = x[start_k + i]"""
    vector, start, outputs = self.dim(dim), 0, []
    for shape in call.shapes:
        size = shape[dim]
        outputs.append(
            replace(self, dim, vector.take(slice(start, start + size)) if not vector.fixed else call.fixed(size))
        )
        start += size
    return outputs


@rule("aten::cat", "aten::concat", "aten::concatenate")
def cat(call: Call, tensors: Sequence[Operand], dim: int) -> Operand:
    """y[start_k + i] = x_k[i]"""
    tensors = [t for t in tensors if t.shape != (0,)]  # torch lets an empty list member through
    d = dim % tensors[0].ndim
    for other in tensors[1:]:
        for axis in range(other.ndim):
            if axis != d:
                call.same(tensors[0].dim(axis), other.dim(axis))
    vectors = [
        next((t.dim(axis) for t in tensors if not t.dim(axis).fixed), tensors[0].dim(axis))
        for axis in range(tensors[0].ndim)
    ]
    vectors[d] = call.terms.cat([t.dim(d) for t in tensors])
    return call.operand(vectors, [all(t.zero[axis] for t in tensors) for axis in range(len(vectors))])


@rule("aten::stack")
def stack(call: Call, tensors: Sequence[Operand], dim: int) -> Operand:
    """y[k, i] = x_k[i]"""
    for other in tensors[1:]:
        for axis in range(other.ndim):
            call.same(tensors[0].dim(axis), other.dim(axis))
    first = Operand(tensors[0].vectors, tuple(all(t.zero[a] for t in tensors) for a in range(tensors[0].ndim)))
    return unsqueeze_at(call, first, dim, len(tensors))


def unsqueeze_at(call: Call, operand: Operand, dim: int, size: int) -> Operand:
    """The operand with a new fixed dimension of `size`."""
    d = dim % (operand.ndim + 1)
    vectors, zero = operand.vectors, operand.zero
    return call.operand([*vectors[:d], call.fixed(size), *vectors[d:]], [*zero[:d], True, *zero[d:]])


@rule("aten::constant_pad_nd")
def constant_pad_nd(call: Call, self: Operand, pad: Sequence[int], value: float) -> Operand:
    """y[l + i] = x[i]. The slots that padding adds beside channels are free: they are only a number."""
    vectors = list(self.vectors)
    filled = value != 0 and any(side > 0 for side in pad)  # the border of a removed channel is not zero then
    for k in range(len(pad) // 2):
        d = self.ndim - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        vector = vectors[d]
        if vector.fixed:
            vectors[d] = call.fixed(call.shapes[0][d])
            continue
        inner = vector.take(slice(max(0, -before), vector.size - max(0, -after)))
        edges = [call.terms.fresh(max(0, side)) for side in (before, after)]
        parts = [part for part in (edges[0], inner, edges[1]) if part.size]
        vectors[d] = parts[0] if len(parts) == 1 else call.terms.cat(parts)
    return call.operand(vectors, [zero and not filled for zero in self.zero])


@rule("aten::repeat_interleave")
def repeat_interleave(call: Call, *operands: Operand) -> list[Operand]:
    """The form that takes a tensor of repeats has an output whose size depends on numbers: refused."""
    return call.refuse(operands, "the number of repeats is data")


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
    return replace(self, 1, call.merge([c, g]))


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


@rule("aten::unfold")
def unfold(call: Call, self: Operand, dimension: int) -> Operand:
    """y[.., l, .., k] = x[.., step * l + k, ..]"""
    d = dimension % max(self.ndim, 1)
    call.lock(self.dim(d), "windows of unfold overlap this dimension")
    shape = call.shapes[0]
    vectors = [call.fixed(shape[d]) if i == d else v for i, v in enumerate(self.vectors)]
    return call.operand([*vectors, call.fixed(shape[-1])], [*self.zero, True])
