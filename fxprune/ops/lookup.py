"""Lookups: rows of a table are read by their number; the columns are channels."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, carries, depends, reads_constants, recounts
from fxprune.ops.constants import whole
from fxprune.ops.contraction import NOT_ZERO
from fxprune.ops.dependence import Dependence, Seen, anything
from fxprune.ops.factors import Asked, Way, column
from fxprune.ops.module_use import Use
from fxprune.ops.registry import Call, Operand, rule


@rule("aten::embedding")
def embedding(call: Call, weight: Operand, indices: Operand) -> Operand:
    """y[.., c] = w[index[..], c]; rows are looked up by number and stay."""
    call.lock(weight.dim(0), "rows of an embedding are looked up by number")
    return call.operand([*indices.vectors, weight.dim(1)], [*(False for _ in indices.vectors), weight.zero[1]])


@depends("aten::embedding")
def embedding_dependence(seen: Seen) -> Dependence:
    """A column depends, unless it is the same number in every row of the table."""
    w = seen["weight"]
    return ~(w == w[:1]).all(0) if seen.of(w) is False else True


@carries("aten::embedding")
def embedding_factors(asked: Asked) -> list[Way]:
    """The columns of the table carry it."""
    return [{"weight": column(asked.factor, -1)[None, :]}]


@rule("aten::embedding_renorm")
def embedding_renorm(call: Call, self: Operand, indices: Operand) -> Operand:
    """w[i, c] *= max_norm / |w[i, :]| for the rows that are looked up and whose norm is larger"""
    call.lock(self.dim(0), "rows of an embedding are looked up by number")
    if not self.zero[1]:
        call.mark(self.dim(1), NOT_ZERO)
    return self


@depends("aten::embedding_renorm")
def embedding_renorm_dependence(seen: Seen) -> Dependence:
    """Everything depends if anything does: the rows that are looked up are scaled."""
    return anything(seen)


reads_constants("aten::embedding_renorm")(whole)
absent("aten::embedding_renorm", modules="the table belongs to `nn.Embedding`, which counts")


@rule("aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag(
    call: Call, weight: Operand, indices: Operand, offsets: Operand, per_sample_weights: Operand | None
) -> list[Operand]:
    """y[b, c] = sum, mean or max of w[i, c] over the rows i of bag b; rows are looked up by number and stay."""
    call.lock(weight.dim(0), "rows of an embedding are looked up by number")
    for part in (indices, offsets, per_sample_weights):
        if part is not None:
            call.lock(part.dim(0), "entries of a bag")
    bags, *rest = call.shapes
    outputs = [call.operand([call.fixed(bags[0]), weight.dim(1)], [True, weight.zero[1]])]
    for shape in rest:  # offsets and sizes of the bags; in mode "max" the row of every maximum
        vectors = [call.fixed(s) for s in shape]
        outputs.append(call.operand([*vectors[:1], weight.dim(1)] if shape == bags else vectors, False))
    return outputs


@depends("aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag_dependence(seen: Seen) -> list[Dependence]:
    """A column depends, unless it is all zero: other constants change with the number of rows in a bag."""
    w = seen["weight"]
    return [seen.live(w).any(0), *(True for _ in seen.func._schema.returns[1:])]


@recounts(
    *("aten::embedding", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"),
    modules=(nn.Embedding, nn.EmbeddingBag),
)
def embedding_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The sizes of the table."""
    return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}


absent(
    *("aten::embedding_renorm", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"),
    factors=NO_FACTOR,
)
absent("aten::embedding", "aten::_embedding_bag", "aten::_embedding_bag_forward_only", constants=SLOT_BY_SLOT)
absent(
    *("aten::embedding", "aten::embedding_renorm", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"),
    multiply_adds="rows are looked up, and summed without a second factor",
    sizes="no argument is a size",
    positions="no argument is a position",
    readers="no argument is a size",
    norms="it is no statistic",
)
