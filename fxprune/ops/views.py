"""Views: the same memory is read in another shape, and the vectors are changed in the same way.

A reshape merges neighbouring dimensions and splits the result: [2, 3, 4] becomes [6, 4] by merging 2 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fxprune.channels.vector import Vector
from fxprune.ops.aspects import SLOT_BY_SLOT, absent, carries, depends, reads, recounts, repositions, resizes
from fxprune.ops.dependence import moved
from fxprune.ops.factors import Asked, Way, moved_factors, possible, reduced
from fxprune.ops.module_use import Use
from fxprune.ops.python_call import Counted, PythonCall
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site

SHARED = "a view shares its memory, and with it the dependence on the inputs"


def reshape(call: Call, operand: Operand, shape: Sequence[int]) -> Operand:
    """The operand in another shape.

    The dimensions of both shapes are divided into the shortest runs of neighbours with equal products, so that each run
    of the old shape becomes one of the new shape: [2, 3, 4, 5] -> [6, 20] by (2, 3) -> (6) and (4, 5) -> (20).
    """
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
        while True:  # the shortest runs [start, stop) and [position, end) with equal products
            if have < want or (have == want == 1 and end == position and stop < len(source) and source[stop] == 1):
                have *= source[stop]
                stop += 1
            elif want < have or end == position:
                if end == len(shape):  # old dimensions of size 1 at the end
                    stop = len(source)
                    break
                want *= shape[end]
                end += 1
            else:
                break
        merged = call.merge(operand.vectors[start:stop]) if stop > start else call.fixed(1)
        vectors += call.split(merged, shape[position:end])
        zero += _zero_after(source[start:stop], operand.zero[start:stop], shape[position:end])
        start, position = stop, end
    return call.operand(vectors, zero)


def _zero_after(sizes: Sequence[int], zero: Sequence[bool], new: Sequence[int]) -> list[bool]:
    """The flags `zero` of the new dimensions that a run of old ones becomes: those of the old dimensions they lie in.

    [2, 8] -> [4, 4]: the last new dimension lies inside the 8, the first one in both.

    >>> _zero_after([2, 8], [False, True], [4, 4])
    [False, True]
    """
    old = list(zip(_strides(sizes), sizes, zero, strict=True))
    return [
        all(flag for begin, width, flag in old if begin < start * size and start < begin * width)
        for start, size in zip(_strides(new), new, strict=True)
    ]


def _strides(sizes: Sequence[int]) -> list[int]:
    """The strides of a contiguous tensor."""
    return [math.prod(sizes[d + 1 :]) for d in range(len(sizes))]


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


@resizes(*("aten::view", "aten::_unsafe_view", "aten::reshape"), targets=("view", "reshape", torch.reshape))
def view_sizes(site: Site) -> None:
    """The shape, written as one sequence or as several integers."""
    first = site.value(site.argument(1, "shape", site.argument(1, "size")))
    if site.result is None or first is None or isinstance(first, torch.dtype):
        return
    name = "shape" if "shape" in site.node.kwargs else "size"
    site.put_sizes(1, name, site.removal.shape(site.result.vectors))


@reads("aten::view", "aten::_unsafe_view", "aten::reshape", functions=("view", "reshape"))
def view_integers(call: PythonCall) -> Iterable[Counted]:
    """Each integer of the shape counts its dimension of the result."""
    sizes = call.sizes(1, "shape", "size")
    return map(Counted, sizes, call.result.vectors) if any(map(call.marked, sizes)) else ()


@resizes("aten::unflatten", targets=("unflatten", torch.unflatten))
def unflatten_sizes(site: Site) -> None:
    """The sizes of the dimensions that one dimension is split into."""
    dim = site.value(site.argument(1, "dim"))
    if site.result is None or not isinstance(dim, int):
        return
    added = site.result.ndim - site.input.ndim + 1
    first = dim % site.input.ndim
    site.put_sizes(2, "sizes", site.removal.shape(site.result.vectors[first : first + added]))


@reads("aten::unflatten", functions=("unflatten",))
def unflatten_integers(call: PythonCall) -> Iterable[Counted]:
    """Each size counts its dimension of the result."""
    sizes, vectors = call.argument(2, "sizes"), call.result.vectors
    first = call.argument(1, "dim") % (len(vectors) - len(sizes) + 1)
    return map(Counted, sizes, vectors[first:])


@recounts("aten::unflatten", modules=(torch.nn.Unflatten,))
def unflatten_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The sizes of the dimensions that one dimension is split into."""
    if not isinstance(use.output, Operand) or not isinstance(module.dim, int) or use.input is None:
        return {}
    first = module.dim % use.input.ndim
    vectors = use.output.vectors[first : first + len(module.unflattened_size)]
    return {"unflattened_size": use.removal.shape(vectors)}


depends("aten::_reshape_copy")(moved)
absent("aten::_reshape_alias", sizes="only torch's own code calls it", readers="Python has no function for it")


@rule("aten::as_strided")
def as_strided(call: Call, self: Operand, stride: Sequence[int]) -> Operand | list[Operand]:
    """y[i, j] = x[i, p(j)], where size and strides of i are those of x, and p(j) stays inside x[i]

    Frames of a signal are such a view: y[i, t, k] = x[i, hop * t + k]. All else is refused.
    """
    shape, tensor = call.shapes[0], call.raw["self"]
    kept = zip(shape, stride, tensor.stride(), strict=False)
    if shape == self.shape and all(new == old for size, new, old in kept if size > 1):
        call.count("size", *self.vectors)
        return self
    lead = _leading_dims(tensor, shape, stride, call.arguments["storage_offset"])
    for vector in self.vectors[lead:]:
        call.lock(vector, "as_strided reads memory in an order of its own")
    if not lead:
        return call.constant()
    inner = [call.merge(self.vectors[d + 1 :]) if d + 1 < self.ndim else call.fixed(1) for d in range(lead)]
    call.positions += [("stride", (d, stride[d]), vector) for d, vector in enumerate(inner) if shape[d] > 1]
    vectors = [*self.vectors[:lead], *(call.fixed(size) for size in shape[lead:])]
    call.count("size", *vectors)
    call.count("stride", *inner, *(call.fixed(number) for number in stride[lead:]))
    return call.operand(vectors, [*self.zero[:lead], *(True for _ in shape[lead:])])


def _leading_dims(tensor: torch.Tensor, shape: Sequence[int], stride: Sequence[int], offset: int | None) -> int:
    """The number of first dimensions that are those of the tensor, while the others stay inside each of their slots."""
    begin = 0 if offset is None else offset - tensor.storage_offset()
    if begin < 0 or not tensor.is_contiguous():
        return 0
    for lead in range(min(len(shape), tensor.ndim), 0, -1):
        same = zip(shape[:lead], tensor.shape, stride, tensor.stride(), strict=False)
        last = begin + sum((size - 1) * step for size, step in zip(shape[lead:], stride[lead:], strict=True))
        if last < math.prod(tensor.shape[lead:]) and all(a == b and (a == 1 or s == t) for a, b, s, t in same):
            return lead
    return 0


@resizes("aten::as_strided", targets=("as_strided", torch.as_strided))
@repositions("aten::as_strided", targets=("as_strided", torch.as_strided))
def as_strided_sizes(site: Site) -> None:
    """Size and strides, for the dimensions that are those of the tensor itself."""
    if "size" in site.counts and site.removal.shape(site.input.vectors) != site.input.shape:
        site.put_sizes(1, "size", site.counted("size"))
        own = site.value(site.node.args[0]).stride()
        strides = site.counted("stride") if "stride" in site.counts else own
        given = site.argument(2, "stride")
        for old, new in zip(given if isinstance(given, (list, tuple)) else (), strides, strict=False):
            if site.computed(old) and site.value(old) != new:
                raise site.refusal("a stride is computed from sizes", do="ignore what is read there")
        site.put_sizes(2, "stride", strides)


@reads("aten::as_strided", functions=("as_strided",))
def as_strided_integers(call: PythonCall) -> Iterable[Counted]:
    """Each size counts its dimension of the result, a stride the slots of the dimensions after its own."""
    yield from map(Counted, call.argument(1, "size"), call.result.vectors)
    yield from map(Counted, call.argument(2, "stride"), call.counted_under("stride"))


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


@resizes("aten::squeeze", targets=("squeeze", torch.squeeze))
def squeeze_dims(site: Site) -> None:
    """The dimensions to squeeze, written out if another dimension has size 1 now."""
    given = site.argument(1, "dim")
    every = range(site.input.ndim) if given is None else (given,) if isinstance(given, int) else given
    dims = [d % site.input.ndim for d in every]
    if any(site.removal.count(site.input.dim(d)) == 1 < site.input.dim(d).size for d in dims):
        site.put(1, "dim", tuple(d for d in dims if site.input.dim(d).size == 1))
        if isinstance(site.node.target, torch._ops.OpOverload):
            site.node.args, site.node.kwargs = (site.node.args[0], site.argument(1, "dim")), {}
            site.node.target = torch.ops.aten.squeeze.dims


absent("aten::squeeze", readers="no argument is a size")


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
    return with_vectors(self, -1)


@rule("aten::view_as_real")
def view_as_real(call: Call, self: Operand) -> Operand:
    """y[i, 0], y[i, 1] = real and imaginary part of x[i]"""
    return call.operand([*self.vectors, call.fixed(2)], [*self.zero, True])


@carries("aten::view_as_complex")
def view_as_complex_factors(asked: Asked) -> list[Way]:
    """Both parts of a number carry its factor."""
    return [{"self": asked.factor[..., None]}]


@carries("aten::view_as_real")
def view_as_real_factors(asked: Asked) -> list[Way]:
    """A number carries the factor of its parts."""
    return possible(lambda: {"self": reduced(asked.factor, [asked.factor.ndim - 1])[..., 0]})


@rule("aten::expand", labels="keep")
def expand(call: Call, self: Operand) -> Operand:
    """y[i, j] = x[j]: the slots of a new dimension are all the same, and can be removed"""
    vectors, zero = _expanded(call, self, call.shapes[0])
    call.count("size", *vectors)
    return call.operand(vectors, zero)


def _expanded(call: Call, operand: Operand, shape: Sequence[int]) -> tuple[list[Vector], list[bool]]:
    """The vectors of an operand that is expanded to a shape, and their flags `zero`."""
    vectors, zero = [], []
    for d, size in enumerate(shape, start=-len(shape)):
        old = operand.vectors[d] if operand.ndim >= -d else call.fixed(1)
        stays = old.size == size
        vectors.append(old if stays else call.fresh(size))
        zero.append(operand.zero[d] if stays and operand.ndim >= -d else False)
    return vectors, zero


resizes("aten::expand", "aten::broadcast_to", targets=("expand", "broadcast_to", torch.broadcast_to))(view_sizes)
reads("aten::expand", functions=("expand", "broadcast_to"))(view_integers)


def with_vectors(operand: Operand, dim: int, *vectors: Vector) -> Operand:
    """The operand with these vectors instead of dimension `dim`; without any, it loses the dimension."""
    d = dim % operand.ndim
    zero = operand.zero[:d] + (operand.zero[d],) * len(vectors) + operand.zero[d + 1 :]
    return Operand(operand.vectors[:d] + vectors + operand.vectors[d + 1 :], zero)


def unsqueeze_at(call: Call, operand: Operand, dim: int, size: int) -> Operand:
    """The operand with a new fixed dimension of this size at `dim`."""
    d = dim % (operand.ndim + 1)
    vectors, zero = operand.vectors, operand.zero
    return call.operand([*vectors[:d], call.fixed(size), *vectors[d:]], [*zero[:d], True, *zero[d:]])


_SIZED = ("aten::view", "aten::_unsafe_view", "aten::reshape", "aten::expand")
_PERMUTED = ("aten::permute", "aten::transpose", "aten::t", "aten::numpy_T", "aten::movedim", "aten::swapaxes")
_UNSIZED = (*_PERMUTED, "aten::unsqueeze", "aten::view_as_complex", "aten::view_as_real", "aten::flatten")
_OTHERS = (*_SIZED, *_UNSIZED, "aten::squeeze", "aten::_reshape_alias", "aten::as_strided")
carries(
    *(*_SIZED, *_PERMUTED, "aten::unsqueeze", "aten::flatten", "aten::unflatten", "aten::squeeze"),
    "aten::_reshape_alias",
)(moved_factors)
absent("aten::as_strided", factors="it reads memory in an order of its own")
absent(*_OTHERS, modules="no module of torch keeps its sizes")
absent(*_UNSIZED, sizes="no argument is a size", readers="no argument is a size")
absent(*_OTHERS, "aten::unflatten", dependence=SHARED)
absent(
    *(*_OTHERS, "aten::unflatten"),
    multiply_adds="nothing is computed",
    norms="it is no statistic",
)
absent(*_SIZED, *_UNSIZED, "aten::squeeze", "aten::_reshape_alias", "aten::unflatten", positions="none is a position")
absent(*_OTHERS, "aten::unflatten", constants=SLOT_BY_SLOT)
