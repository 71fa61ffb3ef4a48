"""Contractions: products that are summed over dimensions. Each is an einsum string, in which a letter is a vector.

A sum over a dimension is exact if one factor is zero at the removed slots. The removed slots of parameters are zero,
and so are the outputs of a layer whose weights and bias are removed. Otherwise the dimension is marked.
"""

from __future__ import annotations

import torch

from fxprune.channels.vector import Vector
from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, carries, depends, multiplies, reads_constants
from fxprune.ops.constants import Read, Sum, WeightedSum
from fxprune.ops.dependence import Dependence, Seen, anything, either, over
from fxprune.ops.elementwise import broadcast
from fxprune.ops.factors import Asked, Value, Way, fitted, possible, reduced
from fxprune.ops.macs import Dims, met
from fxprune.ops.registry import Call, Operand, rule

NOT_ZERO = "a sum over values that are not zero where the channel is gone"


def contract(call: Call, equation: str, *operands: Operand) -> Operand:
    """The result of an einsum. Dimensions with one letter are tied; letters that the output lacks are summed over."""
    inputs, output = equation.split("->")
    vectors: dict[str, Vector] = {}
    zero: dict[str, bool] = {}
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        for letter, vector, vanishes in zip(letters, operand.vectors, operand.zero, strict=True):
            if letter in vectors:
                call.same(vectors[letter], vector)
                if vectors[letter].fixed:
                    vectors[letter] = vector
            else:
                vectors[letter] = vector
            zero[letter] = zero.get(letter, False) or vanishes
    for letter, vector in vectors.items():
        if letter not in output and not zero[letter]:
            call.mark(vector, NOT_ZERO)
    return call.operand([vectors[k] for k in output], [zero[k] for k in output])


def plus(call: Call, addend: Operand, product: Operand) -> Operand:
    """The result of addend + product, broadcast; removed slots are zero if they are in both."""
    vectors = broadcast(call, [product, addend], product.shape)
    zero = []
    for d in range(-product.ndim, 0):
        added = addend.ndim >= -d and addend.shape[d] == product.shape[d] and addend.zero[d]
        zero.append(product.zero[d] and added)
    return call.operand(vectors, zero)


@rule("aten::mm")
def mm(call: Call, self: Operand, mat2: Operand) -> Operand:
    """y[m, n] = sum_k a[m, k] * b[k, n]"""
    return contract(call, "mk,kn->mn", self, mat2)


@depends("aten::mm", "aten::bmm", "aten::mv", "aten::dot", "aten::vdot")
def product_dependence(seen: Seen) -> Dependence:
    """A column depends if one of its products does: a factor that depends, times one that is not always zero."""
    a, b = seen.tensors[:2]
    return columns_that_depend(seen, a, b) if a.ndim > 1 and b.ndim > 1 else anything(seen)


def columns_that_depend(seen: Seen, a: torch.Tensor, b: torch.Tensor) -> Dependence:
    """The dependence of the columns of [.., m, k] times [.., k, n]; shape [.., 1, n]."""
    da, db = seen.of(a), seen.of(b)
    if da is False and db is False:
        return False
    rows = da if isinstance(da, torch.Tensor) else torch.full(a.shape, da, device=a.device)
    made = rows.any(-2)[..., :, None] & seen.live(b)
    if db is not False:
        made = made | (seen.live(a).any(-2)[..., :, None] & db)
    return made.any(-2, keepdim=True)


@depends("aten::addmm", "aten::_sparse_addmm", "aten::baddbmm", "aten::addbmm", "aten::addmv")
def add_product_dependence(seen: Seen) -> Dependence:
    """Depends where the product or the addend does."""
    addend, a, b = seen.tensors[:3]
    if b.ndim < 2:
        return anything(seen)
    made = columns_that_depend(seen, a, b)
    if seen.func._schema.name == "aten::addbmm" and isinstance(made, torch.Tensor):
        made = made.any(0)
    return either(seen.of(addend), made)


@carries("aten::mm", "aten::bmm", "aten::addmm", "aten::_sparse_addmm", "aten::baddbmm", "aten::mv", "aten::addmv")
def product_factors(asked: Asked) -> list[Way]:
    """One of the two factors carries it, and so does the addend."""
    *addends, first, second = [name for name, value in asked.raw.items() if isinstance(value, Value)]
    product, last = asked.factor * asked.as_before("alpha"), asked.factor.ndim - 1
    matrix = len(asked[second].shape) > 1

    def added() -> Way:
        factor = asked.factor * asked.as_before("beta")
        return {name: fitted(factor, asked[name].shape) for name in addends if asked["beta"] != 0}

    def of_first() -> Way:
        return {first: reduced(product, [last]) if matrix else product[..., None], **added()}

    def of_second() -> Way:
        return {second: reduced(product, [last - 1 if matrix else last]), **added()}

    return possible(of_first, of_second)


@reads_constants("aten::mm", "aten::addmm", "aten::_sparse_addmm")
def mm_constants(seen: Seen) -> list[Read]:
    """A weighted sum if the second factor is constant, as in a linear layer; else a product of two tensors."""
    a, b = seen.tensors[-2:]
    if seen.of(b) is not False:
        return product_constants(seen)
    addend = seen["self"] if len(seen.tensors) > 2 else None
    return [WeightedSum(a, 1, b.t()[:, :, None], b.shape[1], addend)]


@reads_constants(
    *("aten::bmm", "aten::baddbmm", "aten::mv", "aten::addmv", "aten::dot", "aten::vdot"),
)
def product_constants(seen: Seen) -> list[Read]:
    """A sum over the last dimension of one factor and the last but one of the other."""
    a, b = seen.tensors[-2:]
    return [Sum(a, a.ndim - 1, b, max(b.ndim - 2, 0))]


@reads_constants("aten::addbmm")
def addbmm_constants(seen: Seen) -> list[Read]:
    """The sum of a product, and the sum over the batch."""
    a, b = seen.tensors[-2:]
    return [*product_constants(seen), Sum(a, 0, b, 0)]


@multiplies("aten::mm", "aten::_int_mm", "aten::_scaled_mm")
def mm_products(self: Dims, mat2: Dims) -> list[Dims]:
    """m k n"""
    return [(self[0], met(self[1], mat2[0]), mat2[1])]


@rule("aten::addmm", "aten::_sparse_addmm")
def addmm(call: Call, self: Operand, mat1: Operand, mat2: Operand) -> Operand:
    """y[m, n] = c[m, n] + sum_k a[m, k] * b[k, n]"""
    return plus(call, self, contract(call, "mk,kn->mn", mat1, mat2))


@multiplies("aten::addmm", "aten::_sparse_addmm")
def addmm_products(mat1: Dims, mat2: Dims) -> list[Dims]:
    """m k n"""
    return mm_products(mat1, mat2)


@rule("aten::bmm")
def bmm(call: Call, self: Operand, mat2: Operand) -> Operand:
    """y[b, m, n] = sum_k x[b, m, k] * z[b, k, n]"""
    return contract(call, "bmk,bkn->bmn", self, mat2)


@multiplies("aten::bmm")
def bmm_products(self: Dims, mat2: Dims) -> list[Dims]:
    """b m k n"""
    return [(met(self[0], mat2[0]), self[1], met(self[2], mat2[1]), mat2[2])]


@rule("aten::baddbmm")
def baddbmm(call: Call, self: Operand, batch1: Operand, batch2: Operand) -> Operand:
    """y[b, m, n] = c[b, m, n] + sum_k x[b, m, k] * z[b, k, n]"""
    return plus(call, self, contract(call, "bmk,bkn->bmn", batch1, batch2))


@rule("aten::addbmm")
def addbmm(call: Call, self: Operand, batch1: Operand, batch2: Operand) -> Operand:
    """y[m, n] = c[m, n] + sum_b sum_k x[b, m, k] * z[b, k, n]"""
    return plus(call, self, contract(call, "bmk,bkn->mn", batch1, batch2))


@multiplies("aten::baddbmm", "aten::addbmm")
def baddbmm_products(batch1: Dims, batch2: Dims) -> list[Dims]:
    """b m k n"""
    return bmm_products(batch1, batch2)


@rule("aten::addr")
def addr(call: Call, self: Operand, vec1: Operand, vec2: Operand) -> Operand:
    """y[m, n] = c[m, n] + a[m] * b[n]"""
    return plus(call, self, contract(call, "m,n->mn", vec1, vec2))


@depends("aten::addr")
def addr_dependence(seen: Seen) -> Dependence:
    """Depends where the addend does, or where one factor does and the other is not always zero."""
    addend, a, b = seen.tensors[:3]
    columns = columns_that_depend(seen, a[:, None], b[None, :])
    rows = columns_that_depend(seen, b[:, None], a[None, :])
    return either(seen.of(addend), columns, rows if isinstance(rows, bool) else rows.t())


@multiplies("aten::addr")
def addr_products(vec1: Dims, vec2: Dims) -> list[Dims]:
    """m n"""
    return [(*vec1, *vec2)]


absent("aten::addr", constants=SLOT_BY_SLOT)


@rule("aten::_cdist_forward", "aten::_euclidean_dist")
def distances(call: Call, x1: Operand, x2: Operand) -> Operand:
    """y[.., p, r] = (sum_m |a[.., p, m] - b[.., r, m]|^q)^(1/q)"""
    channels = x1.dim(-1)
    call.same(channels, x2.dim(-1))
    if not (x1.zero[-1] and x2.zero[-1]):
        call.mark(channels, NOT_ZERO)
    outer = [Operand(x.vectors[:-2], x.zero[:-2]) for x in (x1, x2)]
    batch = broadcast(call, outer, call.shapes[0][:-2])
    return call.operand([*batch, x1.dim(-2), x2.dim(-2)], False)


@depends("aten::_cdist_forward", "aten::_euclidean_dist")
def distances_dependence(seen: Seen) -> Dependence:
    """The distance of a pair depends if one of the two does."""
    x1, x2 = seen["x1"], seen["x2"]
    a, b = over(seen.of(x1), x1, [-1]), over(seen.of(x2), x2, [-1])
    return either(a, b if isinstance(b, bool) else b.transpose(-1, -2))


@reads_constants("aten::_cdist_forward", "aten::_euclidean_dist")
def distances_constants(seen: Seen) -> list[Read]:
    """A sum over the channels of differences: removed slots must be zero in both tensors."""
    return [Sum(seen["x1"], -1), Sum(seen["x2"], -1)]


@multiplies("aten::_cdist_forward", "aten::_euclidean_dist")
def distances_products(x1: Dims, x2: Dims, out: Dims) -> list[Dims]:
    """p r m: one for each slot of each pair"""
    return [(*out, met(x1[-1], x2[-1]))]


@rule("aten::mv")
def mv(call: Call, self: Operand, vec: Operand) -> Operand:
    """y[m] = sum_k a[m, k] * x[k]"""
    return contract(call, "mk,k->m", self, vec)


@multiplies("aten::mv")
def mv_products(self: Dims, vec: Dims) -> list[Dims]:
    """m k"""
    return [(self[0], met(self[1], vec[0]))]


@rule("aten::addmv")
def addmv(call: Call, self: Operand, mat: Operand, vec: Operand) -> Operand:
    """y[m] = c[m] + sum_k a[m, k] * x[k]"""
    return plus(call, self, contract(call, "mk,k->m", mat, vec))


@multiplies("aten::addmv")
def addmv_products(mat: Dims, vec: Dims) -> list[Dims]:
    """m k"""
    return mv_products(mat, vec)


@rule("aten::dot")
def dot(call: Call, self: Operand, tensor: Operand) -> Operand:
    """y = sum_k a[k] * b[k]"""
    return contract(call, "k,k->", self, tensor)


@multiplies("aten::dot")
def dot_products(self: Dims, tensor: Dims) -> list[Dims]:
    """k"""
    return [(met(self[0], tensor[0]),)]


@rule("aten::vdot")
def vdot(call: Call, self: Operand, other: Operand) -> Operand:
    """y = sum_k conj(a[k]) * b[k]"""
    return contract(call, "k,k->", self, other)


@multiplies("aten::vdot")
def vdot_products(self: Dims, other: Dims) -> list[Dims]:
    """k"""
    return dot_products(self, other)


_PRODUCTS = (
    *("aten::mm", "aten::addmm", "aten::_sparse_addmm", "aten::bmm", "aten::baddbmm", "aten::addbmm", "aten::addr"),
    *("aten::mv", "aten::addmv", "aten::dot", "aten::vdot", "aten::_cdist_forward", "aten::_euclidean_dist"),
)
absent(
    *("aten::_cdist_forward", "aten::_euclidean_dist", "aten::addbmm", "aten::addr", "aten::dot", "aten::vdot"),
    factors=NO_FACTOR,
)
absent(
    *_PRODUCTS,
    modules="no module of torch is this operation alone",
    sizes="no argument is a size",
    positions="no argument is a position",
    readers="no argument is a size",
    norms="it is no statistic",
)
