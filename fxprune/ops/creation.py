"""Tensors that forward makes.

A tensor with one value everywhere is the same at any size, so its slots can be removed, and so is an identity matrix
that loses the same rows and columns. One whose values follow from their positions otherwise (a range) stays.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from fxprune.ops.aspects import NO_FACTOR, SLOT_BY_SLOT, absent, depends, reads, resizes
from fxprune.ops.dependence import Dependence, Seen, nothing
from fxprune.ops.python_call import Counted, PythonCall
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site

FILLS = """
    empty full new_empty new_full new_ones ones rand randn scalar_tensor new_empty_strided empty_strided
""".split()
ZEROS = "zeros new_zeros _efficientzerotensor".split()
LIKE = "empty_like full_like ones_like rand_like randn_like randint_like".split()
RANGES = "linspace logspace randperm randint tril_indices triu_indices hann_window".split()


@rule(*(f"aten::{name}" for name in FILLS))
def fills(call: Call) -> Operand:
    """y[i] = value, for i below `size`"""
    made = call.operand([call.fresh(s) for s in call.shapes[0]], False)
    call.count("size", *made.vectors)
    return made


@rule(*(f"aten::{name}" for name in ZEROS))
def zeros(call: Call) -> Operand:
    """y[i] = 0, for i below `size`"""
    made = call.operand([call.fresh(s) for s in call.shapes[0]])
    call.count("size", *made.vectors)
    return made


_MADE = ("zeros", "ones", "empty", "full", "rand", "randn", "_efficientzerotensor")
_NEW = ("new_zeros", "new_ones", "new_empty", "new_full")


@resizes(*(f"aten::{name}" for name in _MADE), targets=[getattr(torch, name) for name in _MADE])
def fill_sizes(site: Site) -> None:
    """The size, written as one sequence or as several integers."""
    if site.result is not None:
        site.put_sizes(0, "size", site.removal.shape(site.result.vectors))


@resizes(*(f"aten::{name}" for name in _NEW), targets=_NEW)
def new_sizes(site: Site) -> None:
    """The size, written as one sequence or as several integers."""
    if site.result is not None:
        site.put_sizes(1, "size", site.removal.shape(site.result.vectors))


@reads(*(f"aten::{name}" for name in _MADE), functions=_MADE)
def fill_integers(call: PythonCall) -> Iterable[Counted]:
    """Each integer of the size counts its dimension."""
    return map(Counted, call.sizes(0, "size"), call.result.vectors)


@reads(*(f"aten::{name}" for name in _NEW), functions=_NEW)
def new_integers(call: PythonCall) -> Iterable[Counted]:
    """Each integer of the size counts its dimension."""
    return map(Counted, call.sizes(1, "size"), call.result.vectors)


absent("aten::scalar_tensor", sizes="it has no dimension", readers="it has no dimension")
absent(
    *("aten::empty_strided", "aten::new_empty_strided"), sizes="it takes strides too", readers="it takes strides too"
)


@rule(*(f"aten::{name}" for name in LIKE))
def like(call: Call, self: Operand) -> Operand:
    """y[i] = value, for the i of x"""
    return call.operand(self.vectors, False)


@rule("aten::zeros_like")
def zeros_like(call: Call, self: Operand) -> Operand:
    """y[i] = 0, for the i of x"""
    return call.operand(self.vectors)


absent(
    *(f"aten::{name}" for name in LIKE),
    "aten::zeros_like",
    sizes="no argument is a size",
    readers="no argument is a size",
)


@rule("aten::arange")
def arange(call: Call) -> Operand:
    """y[i] = start + step * i. With start 0 and step 1, the numbers are positions in the result itself."""
    arguments, (size,) = call.arguments, call.shapes[0]
    if arguments.get("start", 0) != 0 or arguments.get("step", 1) != 1 or arguments["end"] != size:
        return call.constant()
    vector = call.fresh(size)
    return Operand((vector,), (True,), labels=None if vector.fixed else vector)


@resizes("aten::arange", targets=(torch.arange,))
def arange_end(site: Site) -> None:
    """The end, if it is the only argument: the number of slots that are left."""
    if site.result is not None and len(site.node.args) == 1:
        site.put(0, "end", site.removal.count(site.result.dim(0)))


@reads("aten::arange", functions=("arange",))
def arange_integers(call: PythonCall) -> Iterable[Counted]:
    """The end, if it is the only argument."""
    return [Counted(call.args[0], call.result.dim(0))] if len(call.args) == 1 else ()


@rule("aten::eye")
def eye(call: Call) -> Operand:
    """y[i, j] = 1 where i = j, else 0. Of a square one, rows and columns are the same channels."""
    rows, columns = call.shapes[0]
    if rows != columns:
        return call.constant()
    vector = call.fresh(rows)
    return call.operand([vector, vector], False)


@resizes("aten::eye", targets=(torch.eye,))
def eye_sizes(site: Site) -> None:
    """The number of rows, and that of columns if it is there."""
    if site.result is not None:
        for position, name in enumerate("nm"[: len(site.node.args) + len(site.node.kwargs.keys() & {"n", "m"})]):
            site.put(position, name, site.removal.count(site.result.dim(position)))


@reads("aten::eye", functions=("eye",))
def eye_integers(call: PythonCall) -> Iterable[Counted]:
    """The numbers of rows and of columns."""
    return map(Counted, call.args[:2], call.result.vectors)


@resizes("aten::one_hot", targets=(F.one_hot,))
def one_hot_classes(site: Site) -> None:
    """The number of classes."""
    if site.result is not None:
        site.put(1, "num_classes", site.removal.count(site.result.dim(-1)))


@reads("aten::one_hot", functions=("one_hot",))
def one_hot_integers(call: PythonCall) -> Iterable[Counted]:
    """The number of classes."""
    return [Counted(call.argument(1, "num_classes", -1), call.result.dim(-1))]


@rule(*(f"aten::{name}" for name in RANGES))
def ranges(call: Call) -> list[Operand]:
    """y[i] depends on i: fixed"""
    return [call.constant(i) for i in range(len(call.shapes))]


_RANDOM = "rand randn rand_like randn_like randint_like randperm randint".split()


@depends(*(f"aten::{name}" for name in _RANDOM))
def random_fills_dependence(seen: Seen) -> Dependence:
    """A random number is no constant."""
    return True


depends(
    *("aten::zeros_like", "aten::arange", "aten::eye"),
    *(f"aten::{name}" for name in (*FILLS, *ZEROS, *LIKE, *RANGES) if name not in _RANDOM),
)(nothing)
_RANGES = tuple(f"aten::{name}" for name in RANGES)
absent(*_RANGES, sizes="what is made keeps its size", readers="what is made keeps its size")
absent(
    *(
        *_RANGES,
        "aten::arange",
        "aten::eye",
        "aten::zeros_like",
        *(f"aten::{name}" for name in (*FILLS, *ZEROS, *LIKE)),
    ),
    multiply_adds="nothing is multiplied",
    positions="no argument is a position",
    modules="no module of torch makes tensors",
    norms="it is no statistic",
    factors=NO_FACTOR,
    constants=SLOT_BY_SLOT,
)
