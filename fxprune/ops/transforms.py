"""Transforms that mix all positions of one or two dimensions. Those are locked; the others are treated one by one."""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, carries, depends, uncounted
from fxprune.ops.dependence import Dependence, Seen, either, moved, nothing, over
from fxprune.ops.elementwise import broadcast
from fxprune.ops.factors import moved_factors
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.views import SHARED

POSITION = "the result depends on the position in this dimension"


@rule("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r")
def fft(call: Call, self: Operand, dim: Sequence[int]) -> Operand:
    """y[i, k] = sum_t x[i, t] * exp(-2 pi i k t / n)"""
    transformed = {d % self.ndim for d in dim}
    for d in transformed:
        call.lock(self.dim(d), "a Fourier transform runs over this dimension")
    shape = call.shapes[0]
    vectors = [call.fixed(shape[d]) if d in transformed else v for d, v in enumerate(self.vectors)]
    return call.operand(vectors, self.zero)


@uncounted("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r")
def fft_products() -> None:
    """Unknown: the number depends on the factors of the lengths."""


@depends("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r")
def fft_dependence(seen: Seen) -> Dependence:
    """Depends if any element along the dimension does, or is not zero: sums change with the number of positions."""
    x = seen["self"]
    return over(seen.live(x), x, seen["dim"])


@rule("aten::tril", "aten::triu")
def triangle(call: Call, self: Operand) -> Operand:
    """y[c, i, j] = x[c, i, j] on one side of the diagonal, 0 on the other"""
    for vector in self.vectors[-2:]:
        call.lock(vector, POSITION)
    return self


depends("aten::tril", "aten::triu")(moved)


@rule("aten::diagonal")
def diagonal(call: Call, self: Operand, dim1: int, dim2: int) -> Operand:
    """y[c, i] = x[c, i, i + offset]"""
    dims = {dim1 % self.ndim, dim2 % self.ndim}
    for d in dims:
        call.lock(self.dim(d), POSITION)
    rest = [d for d in range(self.ndim) if d not in dims]
    return call.operand(
        [*(self.dim(d) for d in rest), call.fixed(call.shapes[0][-1])], [*(self.zero[d] for d in rest), True]
    )


absent("aten::diagonal", dependence=SHARED)


@rule("aten::diag_embed")
def diag_embed(call: Call, self: Operand, dim1: int, dim2: int) -> Operand:
    """y[c, i, i + offset] = x[c, i], 0 elsewhere"""
    call.lock(self.dim(-1), POSITION)
    shape = call.shapes[0]
    dims = {dim1 % len(shape), dim2 % len(shape)}
    rest = iter(zip(self.vectors, self.zero, strict=True))
    vectors, zero = zip(
        *((call.fixed(size), True) if d in dims else next(rest) for d, size in enumerate(shape)), strict=True
    )
    return call.operand(vectors, zero)


depends("aten::diag_embed")(moved)


@rule("aten::trace")
def trace(call: Call, self: Operand) -> Operand:
    """y = sum_i x[i, i]"""
    for vector in self.vectors:
        call.lock(vector, POSITION)
    return call.constant()


@depends("aten::trace", "aten::affine_grid_generator")
def sized_dependence(seen: Seen) -> Dependence:
    """Everything depends: the results are sums of constants, or numbers that follow from sizes."""
    return True


@rule("aten::linalg_cross")
def cross(call: Call, self: Operand, other: Operand, dim: int) -> Operand:
    """y[c, i] = a[c, i + 1] * b[c, i + 2] - a[c, i + 2] * b[c, i + 1], i modulo 3"""
    for operand in (self, other):
        call.lock(operand.dim(dim), "the three coordinates of a cross product")
    shape = call.shapes[0]
    vectors = broadcast(call, [self, other], shape)
    zero = [
        any(o.ndim >= -d and o.vectors[d].size == size and o.zero[d] for o in (self, other))
        for d, size in enumerate(shape, start=-len(shape))
    ]
    return call.operand(vectors, zero)


@depends("aten::linalg_cross")
def cross_dependence(seen: Seen) -> Dependence:
    """Depends where any of the three coordinates does."""
    a, b = seen["self"], seen["other"]
    return either(over(seen.of(a), a, [seen["dim"]]), over(seen.of(b), b, [seen["dim"]]))


@rule("aten::affine_grid_generator")
def affine_grid(call: Call, theta: Operand) -> list[Operand]:
    """y[n, h, w, d] = sum_k theta[n, d, k] * (position h, w, 1)[k]"""
    return call.refuse([theta], "the sizes of a sampling grid")


@rule("aten::_assert_tensor_metadata", "aten::_assert_async")
def assertions(call: Call) -> None:
    """No result"""


@rule("aten::is_same_size", "aten::_has_same_storage_numel")
def same_shapes(call: Call, self: Operand, other: Operand) -> None:
    """No result: torch compares a tensor with its tangent, which gets smaller with it."""
    if self.shape == other.shape:
        for one, tangent in zip(self.vectors, other.vectors, strict=True):
            call.same(one, tangent)
    else:
        call.refuse([self, other], "the shapes of two tensors are compared")


_COMPARED = ("aten::is_same_size", "aten::_has_same_storage_numel")
depends("aten::_assert_tensor_metadata", "aten::_assert_async", *_COMPARED)(nothing)

_FFT = ("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r")
_OTHERS = (
    *("aten::tril", "aten::triu", "aten::diagonal", "aten::diag_embed", "aten::trace", "aten::linalg_cross"),
    *("aten::affine_grid_generator", "aten::_assert_tensor_metadata", "aten::_assert_async", *_COMPARED),
)
_MOVED = ("aten::diagonal", "aten::diag_embed", "aten::tril", "aten::triu")
carries(*_MOVED)(moved_factors)
absent(*(name for name in (*_FFT, *_OTHERS) if name not in _MOVED), factors=NO_FACTOR)
absent(*_OTHERS, multiply_adds="it is no contraction")
absent(*_FFT, *_OTHERS, sizes="no argument is a size that changes", readers="no argument is a size that changes")
absent(
    *(*_FFT, *_OTHERS),
    positions="no argument is a position",
    modules="no module of torch is this operation",
    norms="it is no statistic that a layer keeps",
)
absent(*_FFT, *_OTHERS, constants=SLOT_BY_SLOT)
