"""Linear and bilinear layers: products with a weight that a layer owns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fxprune.ops.aspects import NO_FACTOR, absent, carries, depends, multiplies, reads_constants, recounts
from fxprune.ops.constants import Read, Sum, whole
from fxprune.ops.contraction import columns_that_depend, contract, plus
from fxprune.ops.dependence import Dependence, Seen, anything, either
from fxprune.ops.factors import Asked, Way, column, possible, reduced
from fxprune.ops.macs import Dims, met
from fxprune.ops.module_use import Use, stored_weight
from fxprune.ops.registry import Call, Operand, rule


@rule("aten::linear")
def linear(call: Call, input: Operand, weight: Operand, bias: Operand | None) -> Operand:
    """y[.., o] = sum_i x[.., i] * w[o, i] + b[o]"""
    letters = "abcdefgh"[: input.ndim - 1]
    made = contract(call, f"{letters}i,oi->{letters}o", input, weight)
    return made if bias is None else plus(call, bias, made)


@depends("aten::linear")
def linear_dependence(seen: Seen) -> Dependence:
    """An output depends if one of its products does, or its bias."""
    bias = seen["bias"]
    made = columns_that_depend(seen, seen["input"], seen["weight"].t())
    return either(made, False if bias is None else seen.of(bias))


@reads_constants("aten::linear")
def linear_constants(seen: Seen) -> list[Read]:
    """A sum over the last dimension of both. Usually torch runs it as `addmm`, which can fold constants."""
    return [Sum(seen["input"], -1, seen["weight"], -1)]


@multiplies("aten::linear")
def linear_products(input: Dims, weight: Dims) -> list[Dims]:
    """n i o"""
    return [(*input[:-1], met(input[-1], weight[-1]), *weight[:-1])]


@recounts("aten::linear", modules=(nn.Linear,))
def linear_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The sizes of the weight."""
    return {"out_features": stored_weight(module).shape[0], "in_features": stored_weight(module).shape[1]}


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


@depends("aten::_trilinear")
def trilinear_dependence(seen: Seen) -> Dependence:
    """Everything depends if anything does."""
    return anything(seen)


@multiplies("aten::_trilinear")
def trilinear_products(
    i1: Dims,
    i2: Dims,
    i3: Dims,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
) -> list[Dims]:
    """Two products, one after the other: the first sums over those letters that the third factor lacks."""
    total = len(i1) + len(expand1)
    full = []
    for dims, expand in ((i1, expand1), (i2, expand2), (i3, expand3)):
        left = iter(dims)
        full.append([None if d in expand else next(left) for d in range(total)])
    first = [_either(a, b) for a, b in zip(full[0], full[1], strict=True)]
    rest = [None if d in sumdim and full[2][d] is None else size for d, size in enumerate(first)]
    second = [_either(a, b) for a, b in zip(rest, full[2], strict=True)]
    return [tuple(size for size in letters if size is not None) for letters in (first, second)]


def _either(a: Any, b: Any) -> Any:
    """The size of a letter that one or both of two factors have, None for a factor without it."""
    return b if a is None else a if b is None else met(a, b)


@recounts("aten::_trilinear", modules=(nn.Bilinear,))
def bilinear_attributes(module: Any, use: Use) -> dict[str, Any]:
    """The sizes of the weight."""
    out, first, second = module.weight.shape
    return {"out_features": out, "in1_features": first, "in2_features": second}


reads_constants("aten::_trilinear")(whole)


@carries("aten::linear")
def linear_factors(asked: Asked) -> list[Way]:
    """The weight or the input carries it, and so does the bias."""
    outputs = column(asked.factor, -1)
    bias = {} if asked["bias"] is None else {"bias": outputs}
    return possible(
        lambda: {"weight": outputs[:, None], **bias}, lambda: {"input": reduced(asked.factor, [-1]), **bias}
    )


absent("aten::_trilinear", factors=NO_FACTOR)
absent(
    *("aten::linear", "aten::_trilinear"),
    sizes="no argument is a size",
    positions="no argument is a position",
    readers="no argument is a size",
    norms="it is no statistic",
)
