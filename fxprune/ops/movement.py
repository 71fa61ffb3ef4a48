"""Movement of data: slots get other places, and their vectors are moved in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fxprune.channels.groups import Removal
from fxprune.ops.aspects import SLOT_BY_SLOT, absent, carries, depends, reads, recounts, repositions, resizes
from fxprune.ops.dependence import moved
from fxprune.ops.factors import Asked, Way, moved_factors
from fxprune.ops.module_use import Use
from fxprune.ops.python_call import Counted, PythonCall
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site, rank
from fxprune.ops.views import unsqueeze_at, with_vectors


@rule("aten::cat", "aten::concat", "aten::concatenate")
def cat(call: Call, tensors: Sequence[Operand], dim: int) -> Operand:
    """y[start_k + i] = x_k[i]"""
    tensors = [t for t in tensors if t.shape != (0,)]  # torch allows empty tensors in the list
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


@rule("aten::flip", labels="keep")
def flip(call: Call, self: Operand, dims: Sequence[int]) -> Operand:
    """y[i] = x[n - 1 - i]"""
    made = self
    for d in dims:
        made = with_vectors(made, d, made.dim(d).take(slice(None, None, -1)))
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
        made = with_vectors(made, d, vector.take(np.roll(np.arange(vector.size), s)))
    return made


@repositions("aten::roll", targets=("roll", torch.roll))
def roll_shifts(site: Site) -> None:
    """The shifts: the number of kept slots among those that come to the front."""
    shifts, dims = site.argument(1, "shifts"), site.argument(2, "dims")
    if dims is None or len(dims if isinstance(dims, (list, tuple)) else (dims,)) == 0:
        return
    several = isinstance(shifts, (list, tuple))
    kept = {d: site.removal.kept(v) for d, v in enumerate(site.input.vectors)}
    new = []
    for shift, dim in zip(
        shifts if several else [shifts], dims if isinstance(dims, (list, tuple)) else [dims], strict=True
    ):
        d = dim % site.input.ndim
        slots = kept[d]
        if slots is None:
            new.append(shift)
        else:
            steps = site.position(shift) % len(slots)
            new.append(int(slots[len(slots) - steps :].sum()))
            kept[d] = np.roll(slots, steps)
    site.put(1, "shifts", type(shifts)(new) if several else new[0])


@rule("aten::repeat", "aten::tile", labels="keep")
def repeat(call: Call, self: Operand, repeats: Sequence[int]) -> Operand:
    """y[(r i)] = x[i]; a dimension of size 1 becomes r slots that can be removed."""
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


@resizes("aten::repeat", "aten::tile", targets=("repeat", "tile", torch.tile))
def repeat_sizes(site: Site) -> None:
    """The number of repetitions of each dimension, new size of the result over that of the tensor."""
    output, source = site.output, site.input
    sizes = site.removal.shape(output.vectors)
    pad = output.ndim - source.ndim
    name = "repeats" if str(getattr(site.node.target, "__name__", site.node.target)).startswith("repeat") else "dims"
    first = site.argument(1, name)
    old = first if isinstance(first, (list, tuple)) else site.node.args[1:]
    if len(old) != output.ndim:  # `tile` with fewer numbers than dimensions: 1 for the first ones
        old = (1,) * (output.ndim - len(old)) + tuple(old)
    new = []
    for d, times in enumerate(old):
        size = site.removal.count(source.dim(d - pad)) if d >= pad else 1
        new.append(times if sizes[d] == site.value(times) * size else sizes[d] // size)
    if list(new) != list(old):
        site.node.args, site.node.kwargs = (site.node.args[0] if site.node.args else site.node.kwargs["input"], new), {}


@reads("aten::repeat", "aten::tile", functions=("repeat", "tile"))
def repeat_integers(call: PythonCall) -> Iterable[Counted]:
    """Each integer is the number of times that a dimension of the result repeats that of the tensor."""
    times = call.sizes(1, "repeats", "dims")
    source, target = call.input.vectors, call.result.vectors
    skipped, added = len(target) - len(times), len(target) - len(source)
    for d, count in enumerate(times, start=skipped):
        yield Counted(count, target[d], under=source[d - added] if d >= added else None)


@rule("aten::repeat_interleave")
def repeat_interleave(call: Call, *operands: Operand) -> list[Operand]:
    """y = each x[i] as often as a tensor says: refused, the size of the result depends on numbers."""
    return call.refuse(operands, "the number of repeats is data")


@resizes("aten::repeat_interleave", targets=("repeat_interleave", torch.repeat_interleave))
def repeat_interleave_sizes(site: Site) -> None:
    """The number of repetitions, if it is an integer: new size of the result over that of the tensor."""
    if isinstance(site.value(site.argument(1, "repeats")), int):
        output, source = (math.prod(site.removal.shape(o.vectors)) for o in (site.output, site.input))
        site.put(1, "repeats", output // source)


@reads("aten::repeat_interleave", functions=("repeat_interleave",))
def repeat_interleave_integers(call: PythonCall) -> Iterable[Counted]:
    """The integer is the number of times that a dimension is repeated."""
    times, dim = call.argument(1, "repeats"), call.argument(2, "dim")
    if not call.marked(times) or dim is None:
        return ()
    return [Counted(times, call.result.dim(dim), under=call.input.dim(dim))]


@rule("aten::constant_pad_nd")
def constant_pad_nd(call: Call, self: Operand, pad: Sequence[int], value: float) -> Operand:
    """y[l + i] = x[i]. Slots that are added to a dimension of channels are one number, and can be removed."""
    vectors = list(self.vectors)
    filled = value != 0 and any(side > 0 for side in pad)  # then a removed channel is not zero in the border
    for k in range(len(pad) // 2):
        d = self.ndim - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        vector = vectors[d]
        if vector.fixed:
            vectors[d] = call.fixed(call.shapes[0][d])
            continue
        inner = vector.take(slice(max(0, -before), vector.size - max(0, -after)))
        # a border of one slot can go too, unlike a dimension of one slot: see `fresh`
        edges = [call.terms.fresh(max(0, side) + 1).take(slice(max(0, side))) for side in (before, after)]
        parts = [part for part in (edges[0], inner, edges[1]) if part.size]
        vectors[d] = parts[0] if len(parts) == 1 else call.terms.cat(parts)
        if before:
            call.positions.append(("pad", (2 * k, int(before)), vectors[d] if before > 0 else vector))
    return call.operand(vectors, [zero and not filled for zero in self.zero])


@resizes("aten::constant_pad_nd", "aten::pad", targets=(F.pad,))
def pad_sizes(site: Site) -> None:
    """The number of slots that are added at both ends of each dimension."""
    pad = site.argument(1, "pad")
    if not isinstance(pad, (list, tuple)):
        return
    new = padding(site.removal, site.input, site.output, [site.operand(p) for p in pad])
    site.put(1, "pad", type(pad)(p if site.value(p) == n else n for p, n in zip(pad, new, strict=True)))


@recounts("aten::constant_pad_nd", modules=(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d))
def pad_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The number of slots that are added at both ends of each dimension."""
    if use.input is None or not isinstance(use.output, Operand):
        return {}
    return {"padding": tuple(padding(use.removal, use.input, use.output, module.padding))}


def padding(removal: Removal, input: Operand, output: Operand, pad: Sequence[int]) -> list[int]:
    """The new padding: the kept slots among those that it adds, or that it cuts off where it is negative.

    pad: as in `F.pad`, two numbers per dimension, the last dimension first. input, output: the operands before and
    after padding.
    """
    new = list(pad)
    for k in range(len(pad) // 2):
        d = input.ndim - 1 - k
        before, after = pad[2 * k : 2 * k + 2]
        kept_in, kept_out = removal.kept(input.dim(d)), removal.kept(output.dim(d))
        if kept_in is None and kept_out is None:
            continue
        n = input.dim(d).size
        m = output.dim(d).size
        new[2 * k] = rank(kept_out, before) if before > 0 else -rank(kept_in, -before)
        tail = kept_out[m - after :].sum() if kept_out is not None and after > 0 else after
        cut = kept_in[n + after :].sum() if kept_in is not None and after < 0 else -after
        new[2 * k + 1] = int(tail) if after > 0 else -int(cut)
    return new


@carries("aten::constant_pad_nd")
def constant_pad_nd_factors(asked: Asked) -> list[Way]:
    """Elements are moved; added ones are zero, or they would have to stay as they are."""
    return moved_factors(asked) if not asked["value"] else []


absent("aten::constant_pad_nd", readers="a number of added slots is no size of a dimension")


_MOVED = ("aten::cat", "aten::concat", "aten::concatenate", "aten::stack", "aten::flip", "aten::rot90")
_ALL = (*_MOVED, "aten::roll", "aten::repeat", "aten::tile", "aten::repeat_interleave", "aten::constant_pad_nd")
depends(*_ALL)(moved)
carries(*(op for op in _ALL if op != "aten::constant_pad_nd"))(moved_factors)
absent(*_ALL, multiply_adds="nothing is computed", norms="it is no statistic")
absent(*(op for op in _ALL if op != "aten::constant_pad_nd"), modules="no module of torch keeps its arguments")
absent(*_MOVED, "aten::roll", sizes="no argument is a size")
absent(*(op for op in _ALL[:-1] if op != "aten::roll"), positions="no argument is a position")
absent("aten::constant_pad_nd", positions="where the border ends follows from its width, which is a size")
absent(*_MOVED, "aten::roll", readers="no argument is an integer that counts")
absent(*_ALL, constants=SLOT_BY_SLOT)
