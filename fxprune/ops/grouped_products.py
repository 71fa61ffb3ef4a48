"""Grouped products: one product for each expert, whose rows stand one after the other in one tensor."""

from __future__ import annotations

from fxprune.ops.aspects import NO_FACTOR, absent, depends, multiplies, reads_constants
from fxprune.ops.constants import whole
from fxprune.ops.contraction import bmm_products, contract
from fxprune.ops.dependence import Dependence, Seen, anything
from fxprune.ops.macs import Dims, met
from fxprune.ops.registry import Call, Operand, rule


@rule("aten::_grouped_mm")
def grouped_mm(call: Call, self: Operand, mat2: Operand, offs: Operand | None) -> Operand:
    """y[m, n] = sum_k a[m, k] * b[e, k, n], where e is the expert of row m; the offsets say where its rows end.

    The dimension that is divided among the experts may also be n (y[m, n]) or k (y[e, m, n]). It is locked; whole
    experts can be removed, with their offsets.
    """
    ragged = "the offsets of the groups count this dimension"
    forms = {(2, 3): "mk,ekn->mn", (3, 2): "emk,kn->mn", (2, 2): "mk,kn->mn", (3, 3): "emk,ekn->emn"}
    counted = {(2, 3): [self.dim(0)], (3, 2): [mat2.dim(-1)], (2, 2): [self.dim(1), mat2.dim(0)], (3, 3): []}
    form = (self.ndim, mat2.ndim)
    for operand in (self, mat2):
        if operand.ndim == 3 and form != (3, 3):
            if offs is None or offs.dim(0).size != operand.dim(0).size:
                call.lock(operand.dim(0), "the groups of a grouped product")
            else:  # an expert is removed with its offset
                call.same(operand.dim(0), offs.dim(0))
    if form in ((2, 2), (3, 3)):
        for vector in offs.vectors if offs is not None else ():
            call.lock(vector, ragged)
    for vector in counted[form]:
        call.lock(vector, ragged)
    for operand, tensor in ((self, call.raw["self"]), (mat2, call.raw["mat2"])):
        row = next((d for d in (-1, -2) if tensor.stride(d) == 1), -1)
        call.multiple(operand.dim(row), 16 // tensor.element_size(), "the kernel of a grouped product needs 16 bytes")
    made = contract(call, forms[form], self, mat2)
    if form == (2, 2):
        made = call.operand([call.fixed(call.shapes[0][0]), *made.vectors], [True, *made.zero])
    return made


@depends("aten::_grouped_mm")
def grouped_mm_dependence(seen: Seen) -> Dependence:
    """Everything depends if anything does."""
    return anything(seen)


@multiplies("aten::_grouped_mm")
def grouped_mm_products(self: Dims, mat2: Dims) -> list[Dims]:
    """m k n, since each m, k or n belongs to one expert; e m k n for a batch of equal products"""
    if len(self) == 3 and len(mat2) == 3:
        return bmm_products(self, mat2)
    return [(self[-2], met(self[-1], mat2[-2]), mat2[-1])]


reads_constants("aten::_grouped_mm")(whole)
absent(
    "aten::_grouped_mm",
    factors=NO_FACTOR,
    modules="no module of torch is this operation alone",
    sizes="no argument is a size",
    positions="no argument is a position",
    readers="no argument is a size",
    norms="it is no statistic",
)
