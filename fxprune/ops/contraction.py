"""Contractions: products summed over shared letters. Each is an einsum string; equal letters are the same vector.

A sum over a dimension is exact when one factor is zero at the removed slots: parameters are, and so is what comes
out of a layer whose weights and bias went. Otherwise the dimension is marked.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.channels.vector import Vector
from fxprune.ops.elementwise import broadcast
from fxprune.ops.registry import Call, Operand, rule

NOT_ZERO = "a sum over values that are not zero where the channel is gone"


def contract(call: Call, equation: str, *operands: Operand) -> Operand:
    """einsum over vectors: equal letters are unified, letters missing from the output are summed over."""
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
    """addend + product, broadcast: zero only where both are."""
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


@rule("aten::addmm")
def addmm(call: Call, self: Operand, mat1: Operand, mat2: Operand) -> Operand:
    """y[m, n] = c[m, n] + sum_k a[m, k] * b[k, n]"""
    return plus(call, self, contract(call, "mk,kn->mn", mat1, mat2))


@rule("aten::bmm")
def bmm(call: Call, self: Operand, mat2: Operand) -> Operand:
    """y[b, m, n] = sum_k x[b, m, k] * z[b, k, n]"""
    return contract(call, "bmk,bkn->bmn", self, mat2)


@rule("aten::baddbmm")
def baddbmm(call: Call, self: Operand, batch1: Operand, batch2: Operand) -> Operand:
    """y[b, m, n] = c[b, m, n] + sum_k x[b, m, k] * z[b, k, n]"""
    return plus(call, self, contract(call, "bmk,bkn->bmn", batch1, batch2))


@rule("aten::addbmm")
def addbmm(call: Call, self: Operand, batch1: Operand, batch2: Operand) -> Operand:
    """y[m, n] = c[m, n] + sum_b sum_k x[b, m, k] * z[b, k, n]"""
    return plus(call, self, contract(call, "bmk,bkn->mn", batch1, batch2))


@rule("aten::addr")
def addr(call: Call, self: Operand, vec1: Operand, vec2: Operand) -> Operand:
    """y[m, n] = c[m, n] + a[m] * b[n]"""
    return plus(call, self, contract(call, "m,n->mn", vec1, vec2))


@rule("aten::_grouped_mm")
def grouped_mm(call: Call, self: Operand, mat2: Operand, offs: Operand | None) -> Operand:
    """y[m, n] = sum_k a[m, k] * b[e, k, n] for the rows m of expert e: the rows stay where they are, as do experts.

    Also with the ragged dimension in b (y[m, n], n belongs to e) or in the sum (y[e, m, n], k belongs to e).
    """
    ragged = "the offsets of the groups count this dimension"
    forms = {(2, 3): "mk,ekn->mn", (3, 2): "emk,kn->mn", (2, 2): "mk,kn->mn", (3, 3): "emk,ekn->emn"}
    counted = {(2, 3): [self.dim(0)], (3, 2): [mat2.dim(-1)], (2, 2): [self.dim(1), mat2.dim(0)], (3, 3): []}
    form = (self.ndim, mat2.ndim)
    for operand in (self, mat2):
        if operand.ndim == 3 and form != (3, 3):
            if offs is None or offs.dim(0).size != operand.dim(0).size:
                call.lock(operand.dim(0), "the groups of a grouped product")
            else:  # an expert goes with the end of its rows
                call.same(operand.dim(0), offs.dim(0))
    if form in ((2, 2), (3, 3)):
        for vector in offs.vectors if offs is not None else ():
            call.lock(vector, ragged)
    for vector in counted[form]:
        call.lock(vector, ragged)
    made = contract(call, forms[form], self, mat2)
    if form == (2, 2):
        made = call.operand([call.fixed(call.shapes[0][0]), *made.vectors], [True, *made.zero])
    return made


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


@rule("aten::mv")
def mv(call: Call, self: Operand, vec: Operand) -> Operand:
    """y[m] = sum_k a[m, k] * x[k]"""
    return contract(call, "mk,k->m", self, vec)


@rule("aten::addmv")
def addmv(call: Call, self: Operand, mat: Operand, vec: Operand) -> Operand:
    """y[m] = c[m] + sum_k a[m, k] * x[k]"""
    return plus(call, self, contract(call, "mk,k->m", mat, vec))


@rule("aten::dot")
def dot(call: Call, self: Operand, tensor: Operand) -> Operand:
    """y = sum_k a[k] * b[k]"""
    return contract(call, "k,k->", self, tensor)


@rule("aten::vdot")
def vdot(call: Call, self: Operand, other: Operand) -> Operand:
    """y = sum_k conj(a[k]) * b[k]"""
    return contract(call, "k,k->", self, other)


@rule("aten::linear")
def linear(call: Call, input: Operand, weight: Operand, bias: Operand | None) -> Operand:
    """y[.., o] = sum_i x[.., i] * w[o, i] + b[o]"""
    letters = "abcdefgh"[: input.ndim - 1]
    made = contract(call, f"{letters}i,oi->{letters}o", input, weight)
    return made if bias is None else plus(call, bias, made)


@rule("aten::_trilinear")
def trilinear(
    call: Call,
    i1: Operand,
    i2: Operand,
    i3: Operand,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
) -> Operand:
    """y = sum over `sumdim` of x1 * x2 * x3, each first unsqueezed at its `expand` dimensions (bilinear layers)."""
    letters = "abcdefghij"[: i1.ndim + len(expand1)]
    names = ["".join(k for d, k in enumerate(letters) if d not in e) for e in (expand1, expand2, expand3)]
    output = "".join(k for d, k in enumerate(letters) if d not in sumdim)
    return contract(call, ",".join(names) + "->" + output, i1, i2, i3)


@rule("aten::convolution", "aten::_convolution", "aten::convolution_overrideable", "aten::cudnn_convolution")
def convolution(
    call: Call, input: Operand, weight: Operand, bias: Operand | None, transposed: bool, groups: int
) -> Operand:
    """y[n, (g o), s'] = sum_{i, k} w[(g o), i, k] * x[n, (g i), s + k] + b[(g o)];  g counts `groups`.

    Transposed: y[n, (g o), s'] = sum_{i, k} w[(g i), o, k] * x[n, (g i), s - k] + b[(g o)].
    """
    spatial = weight.ndim - 2
    channel = input.ndim - 1 - spatial  # 1, or 0 for an input without batch
    for vector in input.vectors[channel + 1 :]:
        call.lock(vector, "spatial dimension of a convolution")
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
    space = [call.fixed(s) for s in call.shapes[0][channel + 1 :]]
    batch = [vanishes and bias is None for vanishes in input.zero[:channel]]
    return call.operand([*input.vectors[:channel], out, *space], [*batch, zero, *(True for _ in space)])


@rule("aten::embedding")
def embedding(call: Call, weight: Operand, indices: Operand) -> Operand:
    """y[.., c] = w[index[..], c]; rows are looked up by number and stay."""
    call.lock(weight.dim(0), "rows of an embedding are looked up by number")
    return call.operand([*indices.vectors, weight.dim(1)], [*(False for _ in indices.vectors), weight.zero[1]])


@rule("aten::embedding_renorm")
def embedding_renorm(call: Call, self: Operand, indices: Operand) -> Operand:
    """w[i, c] *= max_norm / |w[i, :]| for the rows that are looked up and whose norm is larger"""
    call.lock(self.dim(0), "rows of an embedding are looked up by number")
    if not self.zero[1]:
        call.mark(self.dim(1), NOT_ZERO)
    return self


@rule("aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag(
    call: Call, weight: Operand, indices: Operand, offsets: Operand, per_sample_weights: Operand | None
) -> list[Operand]:
    """y[b, c] = sum, mean or max over the rows i of bag b of w[i, c]; rows are looked up by number and stay."""
    call.lock(weight.dim(0), "rows of an embedding are looked up by number")
    for part in (indices, offsets, per_sample_weights):
        if part is not None:
            call.lock(part.dim(0), "entries of a bag")
    bags, *rest = call.shapes
    outputs = [call.operand([call.fixed(bags[0]), weight.dim(1)], [True, weight.zero[1]])]
    for shape in rest:  # offsets and sizes of the bags, and in mode "max" the row of every maximum
        vectors = [call.fixed(s) for s in shape]
        outputs.append(call.operand([*vectors[:1], weight.dim(1)] if shape == bags else vectors, False))
    return outputs
