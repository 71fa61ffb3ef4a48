"""Counting: operations whose results, or their number, depend on which values occur."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, depends, reads, reads_constants, resizes
from fxprune.ops.constants import whole
from fxprune.ops.dependence import Dependence, Seen, anything
from fxprune.ops.python_call import Counted, PythonCall
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site


@rule(
    *("aten::nonzero", "aten::nonzero_static", "aten::masked_select", "aten::bincount"),
    *("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
)
def counted(call: Call, *operands: Operand) -> list[Operand]:
    """y = the positions or values of those entries that are not zero, that a mask selects, or that are unique"""
    return call.refuse(operands, "how many entries there are is data")


depends(
    *("aten::nonzero", "aten::nonzero_static", "aten::masked_select", "aten::bincount"),
    *("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
)(anything)


@rule("aten::histc", labels="own")
def histc(call: Call, self: Operand, bins: int, min: float, max: float) -> Operand:
    """y[j] = the number of values in bin j

    If the values are positions in a dimension, and there is a bin for each of its slots, the bins are removed with
    them.
    """
    for vector in self.vectors:
        call.lock(vector, "counted by value")
    labels = self.labels
    if labels is None or (bins, min, max) != (labels.size, 0, labels.size - 1):
        if labels is not None:
            call.lock(labels, "positions in this dimension are counted otherwise than one by one")
        return call.constant()
    call.count("bins", labels)
    return call.operand([labels])


@resizes("aten::histc", targets=("histc", torch.histc))
def histc_bins(site: Site) -> None:
    """The number of bins and their upper end, if there is a bin for each slot of a dimension."""
    if "bins" in site.counts:
        (count,) = site.counted("bins")
        site.put(1, "bins", count)
        site.put(3, "max", count - 1)


@reads("aten::histc", functions=("histc",))
def histc_integers(call: PythonCall) -> Iterable[Counted]:
    """The number of bins."""
    return [Counted(call.argument(1, "bins", 100), call.result.dim(0))]


reads_constants("aten::histc")(whole)


@depends("aten::histc")
def histc_dependence(seen: Seen) -> Dependence:
    """Everything depends: the results are numbers of values."""
    return True


@rule("aten::isin")
def isin(call: Call, *operands: Operand) -> Operand:
    """y[i] = True if x[i] is one of the elements that are looked for"""
    shape = call.shapes[0]
    elements = call.arguments.get("elements")
    for operand in operands:
        if operand is not elements:
            for vector in operand.vectors:
                call.lock(vector, "the elements that are looked for")
    return call.operand(elements.vectors if isinstance(elements, Operand) else [call.fixed(s) for s in shape], False)


@depends("aten::isin")
def isin_dependence(seen: Seen) -> Dependence:
    """Everything depends if anything does."""
    return anything(seen)


_FOUND = (
    *("aten::nonzero", "aten::nonzero_static", "aten::masked_select", "aten::bincount"),
    *("aten::_unique", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive"),
)
absent(*_FOUND, "aten::isin", "aten::histc", factors=NO_FACTOR, multiply_adds="nothing is multiplied")
absent(
    *(*_FOUND, "aten::isin"),
    sizes="no argument is a size that changes",
    readers="no argument is a size that changes",
    constants=SLOT_BY_SLOT,
)
absent(
    *(*_FOUND, "aten::isin", "aten::histc"),
    positions="no argument is a position",
    modules="no module of torch counts",
    norms="it is no statistic that a layer keeps",
)
