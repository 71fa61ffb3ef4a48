"""Slices and single positions: a part of the slots of a dimension is taken, or written.

A bound or an index is a position. Its new value is its rank: the number of kept slots before it.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from fxprune.channels.groups import Bools
from fxprune.channels.vector import Vector
from fxprune.ops.aspects import SLOT_BY_SLOT, absent, carries, depends, reads, repositions, resizes
from fxprune.ops.dependence import moved
from fxprune.ops.factors import moved_factors
from fxprune.ops.python_call import Counted, PythonCall
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site, rank
from fxprune.ops.views import SHARED, with_vectors


@rule("aten::slice", labels="keep")
def slice_(call: Call, self: Operand, dim: int, start: int | None, end: int | None, step: int) -> Operand:
    """y[i] = x[start + step * i]. With a step above 1, only whole periods of `step` slots can be removed."""
    vector = self.dim(dim)
    taken = _taken(call, vector, slice(start, end, step))
    return self if taken is vector else with_vectors(self, dim, taken)


def _taken(call: Call, vector: Vector, item: slice) -> Vector:
    """The slots that a slice takes. item: the arguments `start`, `end` and `step` of the operation."""
    if item.step == 1:
        call.position("start", vector)
        call.position("end", vector)
    first, last, step = item.indices(vector.size)
    size = len(range(first, last, step))
    if vector.fixed:
        return call.fixed(size)
    if step == 1:
        return vector if size == vector.size else vector.take(slice(first, last))
    if vector.size % step or first >= step or last <= vector.size - step + first:
        call.lock(vector, f"slice with step {step} that covers no whole number of periods")
        return call.fixed(size)
    periods, phases = call.split(vector, (vector.size // step, step))
    call.lock(phases, f"slice with step {step}: the positions inside a period stay")
    return periods


@repositions("aten::slice")
def slice_bounds(site: Site) -> None:
    """Start and end."""
    _put_bounds(site, 1, site.input)


def _put_bounds(site: Site, first: int, sliced: Operand) -> None:
    """Set start and end; an end that is so large that it means the last slot stays as it is written.

    first: the place of `dim` among the arguments; `start`, `end` and `step` follow. sliced: what they are bounds in.
    """
    kept = site.removal.kept(sliced.dim(site.value(site.argument(first, "dim", 0))))
    if kept is None:
        return
    at = first + 1
    start, end, step = site.argument(at, "start"), site.argument(at + 1, "end"), site.argument(at + 2, "step", 1)
    whole = isinstance(end, int) and end >= sys.maxsize
    new = _kept_slice(site, slice(start, None if whole else end, step), kept)
    if not _written_alike(new.start, start):
        site.put_anyway(at, "start", new.start)
    if not _written_alike(new.stop, None if whole else end):
        site.put_anyway(at + 1, "end", new.stop)


def _kept_slice(site: Site, item: slice, kept: Bools) -> slice:
    """The slice that takes the kept slots of a slice.

    A bound that is None stays None, and a bound that is counted from the end is counted from the end. kept: flags of
    the slots of the dimension.

    Raises `RewriteError` if a bound follows the size of an input.
    """
    size = len(kept)
    left = int(kept.sum())

    def bound(value: Any) -> Any:
        if value is None:
            return None
        number = site.position(value)
        if site.computed(value) and not site.follows_a_width(value):
            raise site.refusal(
                "a position follows the size of an input, in a dimension that would shrink",
                why="other inputs may reach the slots that the example does not",
                do="ignore what is sliced there",
            )
        if number < 0:
            new = rank(kept, max(0, size + number)) - left
            return new if new else left
        return rank(kept, min(number, size))

    if (
        item.step is not None and site.value(item.step) != 1
    ):  # whole periods are removed, so the step and the start inside a period stay
        first, last, _ = slice(*(site.operand(part) for part in (item.start, item.stop, item.step))).indices(size)
        return slice(item.start and first, None if last == size else rank(kept, last), item.step)
    return slice(bound(item.start), bound(item.stop), item.step)


def _written_alike(a: Any, b: Any) -> bool:
    """True if two indices, or parts of them, are written in the same way; two nodes have to be the same node."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_written_alike(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, slice) and isinstance(b, slice):
        return all(_written_alike(x, y) for x, y in ((a.start, b.start), (a.stop, b.stop), (a.step, b.step)))
    return a is b or (type(a) is type(b) and bool(a == b))


@rule("aten::narrow", labels="keep")
def narrow(call: Call, self: Operand, dim: int, start: int, length: int) -> Operand:
    """y[i] = x[start + i]"""
    call.position("start", self.dim(dim))
    return with_vectors(self, dim, self.dim(dim).take(slice(start, start + length)))


@resizes("aten::narrow", targets=("narrow", torch.narrow))
@repositions("aten::narrow", targets=("narrow", torch.narrow))
def narrow_bounds(site: Site) -> None:
    """Start and length."""
    dim = site.value(site.argument(1, "dim"))
    kept = site.removal.kept(site.input.dim(dim))
    if kept is None:
        return
    start = site.position(site.argument(2, "start"))
    site.put(2, "start", rank(kept, start % len(kept)))
    site.put(3, "length", site.removal.count(site.output.dim(dim)))


@reads("aten::narrow", "aten::slice", functions=("narrow",))
def narrow_integers(call: PythonCall) -> Iterable[Counted]:
    """The start counts the slots before it, the length the slots that are taken."""
    if call.kwargs:
        return ()
    _, dim, start, length = call.args
    return Counted(start, call.input.dim(dim), int(start)), Counted(length, call.result.dim(dim))


@rule("aten::select", labels="keep")
def select(call: Call, self: Operand, dim: int, index: int) -> Operand:
    """y = x[index]; that slot stays."""
    vector = self.dim(dim)
    call.position("index", vector)
    at = index % vector.size
    call.lock(vector.take(slice(at, at + 1)), "select takes this single position")
    return with_vectors(self, dim)


@repositions("aten::select", targets=("select", torch.select))
def select_index(site: Site) -> None:
    """The position that is taken."""
    _put_index(site, 1)


def _put_index(site: Site, first: int) -> None:
    """Set a single position. first: the place of `dim` among the arguments; `index` follows."""
    kept = site.removal.kept(site.input.dim(site.value(site.argument(first, "dim"))))
    if kept is not None:
        site.put(first + 1, "index", rank(kept, site.position(site.argument(first + 1, "index")) % len(kept)))


@reads("aten::select", functions=("select",))
def select_integers(call: PythonCall) -> Iterable[Counted]:
    """The index counts the slots before it."""
    dim, index = call.argument(1, "dim"), call.argument(2, "index")
    return [Counted(index, call.input.dim(dim), int(index))] if call.marked(index) else ()


@rule("aten::slice_scatter")
def slice_scatter(call: Call, self: Operand, src: Operand, dim: int, start: int, end: int, step: int) -> Operand:
    """y = x, but y[start + step * i] = src[i]. With a step above 1, only whole periods can be removed."""
    taken = _taken(call, self.dim(dim), slice(start, end, step))
    for d, (vector, written) in enumerate(zip(self.vectors, src.vectors, strict=True)):
        call.same(taken if d == dim % self.ndim else vector, written)
    return call.operand(self.vectors, [a and b for a, b in zip(self.zero, src.zero, strict=True)])


@repositions("aten::slice_scatter", targets=("slice_scatter", torch.slice_scatter))
def slice_scatter_bounds(site: Site) -> None:
    """Start and end."""
    _put_bounds(site, 2, site.input)


@reads("aten::slice_scatter", functions=("slice_scatter",))
def slice_scatter_integers(call: PythonCall) -> Iterable[Counted]:
    """A bound counts the slots before it."""
    vector = call.input.dim(call.argument(2, "dim", 0))
    bounds = (call.argument(3, "start"), call.argument(4, "end"))
    return [Counted(bound, vector, int(bound)) for bound in bounds if call.marked(bound)]


@rule("aten::slice_backward")
def slice_backward(call: Call, grad_output: Operand, dim: int, start: int, end: int, step: int) -> Operand:
    """y[start + step * i] = x[i], and 0 elsewhere: the gradient of a slice. The other slots are only a number."""
    d, inner = dim % grad_output.ndim, grad_output.dim(dim)
    size = call.shapes[0][d]
    first, last, _ = slice(start, end, step).indices(size)
    if inner.fixed:
        made = call.fixed(size)
    elif step == 1:
        edges = call.fresh(first), call.fresh(size - last)
        made = call.terms.cat([part for part in (edges[0], inner, edges[1]) if part.size])
    else:
        call.lock(inner, f"the gradient of a slice with step {step}")
        made = call.fixed(size)
    call.position("start", made)
    call.position("end", made)
    vectors = [*grad_output.vectors[:d], made, *grad_output.vectors[d + 1 :]]
    call.count("input_sizes", *vectors)
    return call.operand(vectors, grad_output.zero)


@resizes("aten::slice_backward")
def slice_backward_sizes(site: Site) -> None:
    """The shape of the result."""
    site.put_sizes(1, "input_sizes", site.counted("input_sizes"))


@repositions("aten::slice_backward")
def slice_backward_bounds(site: Site) -> None:
    """Start and end."""
    _put_bounds(site, 2, site.output)


@reads("aten::slice_backward", functions=("slice_backward",))
def slice_backward_integers(call: PythonCall) -> Iterable[Counted]:
    """The shape of the result, and bounds, which count the slots before them."""
    vectors, dim = call.result.vectors, call.argument(2, "dim")
    sizes = [Counted(size, vector) for size, vector in zip(call.sizes(1, "input_sizes"), vectors, strict=False)]
    bounds = [Counted(at, vectors[dim], int(at)) for at in (call.argument(3, "start"), call.argument(4, "end"))]
    return [one for one in (*sizes, *bounds) if call.marked(one.value)]


@rule("aten::select_scatter")
def select_scatter(call: Call, self: Operand, src: Operand, dim: int, index: int) -> Operand:
    """y = x, but y[index] = src; that slot stays."""
    d, vector = dim % self.ndim, self.dim(dim)
    call.position("index", vector)
    at = index % vector.size
    call.lock(vector.take(slice(at, at + 1)), "select_scatter writes this single position")
    for one, other in zip((*self.vectors[:d], *self.vectors[d + 1 :]), src.vectors, strict=True):
        call.same(one, other)
    zero = [a and b for a, b in zip((*self.zero[:d], *self.zero[d + 1 :]), src.zero, strict=True)]
    return call.operand(self.vectors, [*zero[:d], self.zero[d], *zero[d:]])


@repositions("aten::select_scatter", targets=("select_scatter", torch.select_scatter))
def select_scatter_index(site: Site) -> None:
    """The position that is written."""
    _put_index(site, 2)


@reads("aten::select_scatter", functions=("select_scatter",))
def select_scatter_integers(call: PythonCall) -> Iterable[Counted]:
    """The index counts the slots before it."""
    dim, index = call.argument(2, "dim"), call.argument(3, "index")
    return [Counted(index, call.input.dim(dim), int(index))] if call.marked(index) else ()


@repositions(targets=(operator.getitem,), calls=("aten::slice", "aten::select"))
def subscript_positions(site: Site) -> None:
    """Every bound, index and list of positions in x[...]."""
    source = site.operand(site.node.args[0])
    if not isinstance(source, Operand) or site.result is None:
        return
    index: Any = site.node.args[1]
    items = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(_width(site, item) for item in items)
    new: list[Any] = []
    dim = 0
    for item in items:
        if item is Ellipsis:
            new.append(item)
            dim += source.ndim - consumed
            continue
        width = _width(site, item)
        new.append(_item(site, item, source.vectors[dim]) if width == 1 else item)
        dim += width
    changed: Any = tuple(new) if isinstance(index, tuple) else new[0]
    if not _written_alike(changed, index):
        site.node.update_arg(1, changed)


def _width(site: Site, item: Any) -> int:
    """The number of dimensions that an item of an index indexes."""
    if item is None or item is Ellipsis:
        return 0
    value = site.value(item) if site.computed(item) else item
    return int(value.ndim) if isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8) else 1


def _item(site: Site, item: Any, vector: Vector) -> Any:
    """An item of an index for the kept slots of the dimension that it indexes."""
    kept = site.removal.kept(vector)
    if kept is None:
        return item
    if isinstance(item, slice):
        return _kept_slice(site, item, kept)
    if isinstance(site.operand(item), int):
        return rank(kept, site.operand(item) % len(kept))
    if isinstance(item, (list, tuple)):
        positions = np.asarray(item) % len(kept)
        ranks = np.cumsum(kept) - 1
        return type(item)(ranks[positions[kept[positions]]].tolist())
    return item


@reads("aten::slice", "aten::select", functions=("__getitem__",))
def subscript_integers(call: PythonCall) -> Iterable[Counted]:
    """A bound of a slice, or an index, counts the slots before it."""
    index = call.args[1]
    items = index if isinstance(index, tuple) else (index,)
    if not any(call.marked(bound) for item in items for bound in _bounds(item)):
        return
    vectors = call.input.vectors
    dim = 0
    for position, item in enumerate(items):
        if item is Ellipsis:
            dim = len(vectors) - sum(i is not None for i in items[position + 1 :])
            continue
        yield from (Counted(bound, vectors[dim], int(bound)) for bound in _bounds(item) if call.marked(bound))
        dim += item is not None


def _bounds(item: Any) -> tuple[Any, ...]:
    """The positions in an item of an index."""
    return (item.start, item.stop) if isinstance(item, slice) else (item,)


_PARTS = ("aten::slice", "aten::narrow", "aten::select")
_WRITERS = ("aten::slice_scatter", "aten::select_scatter", "aten::slice_backward")
carries(*_PARTS, *_WRITERS)(moved_factors)
depends(*_WRITERS)(moved)
absent(
    *_PARTS,
    *_WRITERS,
    multiply_adds="nothing is computed",
    modules="no module of torch takes or writes parts",
    norms="it is no statistic",
    constants=SLOT_BY_SLOT,
)
absent(*_PARTS, dependence=SHARED)
absent("aten::slice", "aten::select", *_WRITERS[:2], sizes="no argument is a size")
