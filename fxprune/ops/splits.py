"""Splits: a dimension is cut into parts, which follow each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from fxprune.ops.aspects import SLOT_BY_SLOT, absent, carries, depends, reads, resizes
from fxprune.ops.dependence import moved
from fxprune.ops.factors import moved_factors
from fxprune.ops.python_call import Counted, PythonCall
from fxprune.ops.registry import Call, Operand, rule
from fxprune.ops.site import Site
from fxprune.ops.views import SHARED, with_vectors


@rule("aten::unbind", labels="keep")
def unbind(call: Call, self: Operand, dim: int) -> list[Operand]:
    """y_i = x[i]; every slot stays."""
    call.lock(self.dim(dim), "unbind takes every position on its own")
    return [with_vectors(self, dim)] * len(call.shapes)


absent("aten::unbind", sizes="no argument is a size", readers="no argument is a size")


@rule(
    *("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::tensor_split"),
    *("aten::unsafe_split", "aten::unsafe_split_with_sizes", "aten::unsafe_chunk"),
    labels="keep",
)
def split(call: Call, self: Operand, dim: int) -> list[Operand]:
    """y_k[i] = x[start_k + i]"""
    vector, start, outputs = self.dim(dim), 0, []
    for shape in call.shapes:
        size = shape[dim]
        outputs.append(
            with_vectors(self, dim, vector.take(slice(start, start + size)) if not vector.fixed else call.fixed(size))
        )
        start += size
    return outputs


@resizes(
    *("aten::split", "aten::split_with_sizes"),
    targets=("split", "split_with_sizes", torch.split, torch.split_with_sizes),
)
def split_sizes(site: Site) -> None:
    """The size of all parts, or the size of each."""
    name = "split_size_or_sections" if site.node.target is torch.split else "split_size"
    _into_parts(site, name, lambda whole, old: [min(old, whole - i) for i in range(0, whole, old)])


@resizes("aten::chunk", targets=("chunk", torch.chunk))
def chunk_sizes(site: Site) -> None:
    """The number of parts; their sizes are equal, but the last one may be smaller."""

    def parts(whole: int, chunks: int) -> list[int]:
        size = -(-whole // chunks)
        return [min(size, whole - i) for i in range(0, whole, size)]

    _into_parts(site, "chunks", parts)


@resizes("aten::tensor_split", targets=("tensor_split", torch.tensor_split))
def tensor_split_sizes(site: Site) -> None:
    """The number of parts, of which the first ones may be larger by one; or the positions at which parts begin."""

    def parts(whole: int, sections: int) -> list[int]:
        return [whole // sections + (i < whole % sections) for i in range(sections)]

    _into_parts(site, "indices_or_sections", parts)


def _into_parts(site: Site, name: str, natural: Callable[[int, int], list[int]]) -> None:
    """Write a node that gives parts of the new sizes: as it is, if it gives them, else with a list of sizes.

    name: the keyword of the number of parts or of the sizes. natural: a function from the size of the dimension and
        that number to the sizes of the parts.
    """
    dim = site.value(site.argument(2, "dim", 0))
    sizes = [site.removal.count(part.dim(dim)) for part in site.output]
    old = site.value(site.argument(1, name, site.argument(1, "split_sizes")))
    is_tensor_split = getattr(site.node.target, "__name__", str(site.node.target)).startswith("tensor_split")
    if isinstance(old, int):
        if natural(sum(sizes), old) == sizes:
            return
    elif not is_tensor_split and list(old) == sizes:
        return
    node = site.node
    if node.op == "call_method":
        node.target = "split"
        node.args, node.kwargs = (node.args[0], sizes), {"dim": site.argument(2, "dim", 0)}
    elif isinstance(node.target, torch._ops.OpOverload):
        node.args, node.kwargs = (node.args[0], sizes, site.argument(2, "dim", 0)), {}
        node.target = torch.ops.aten.split_with_sizes.default
    else:
        dim_argument = site.argument(2, "dim", 0)
        tensor = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensor"))
        node.target, node.args, node.kwargs = torch.split, (tensor, sizes), {"dim": dim_argument}


@reads("aten::split", "aten::split_with_sizes", functions=("split", "split_with_sizes"))
def split_integers(call: PythonCall) -> Iterable[Counted]:
    """Each size counts a part; one size for all counts the parts of that size."""
    named = next((v for k, v in call.kwargs.items() if k.startswith("split_s")), ())
    sizes = call.args[1] if len(call.args) > 1 else named
    dim = call.argument(2, "dim", 0)
    if isinstance(sizes, int):
        sizes = [sizes if part.shape[dim] == sizes else None for part in call.made]
    return map(Counted, sizes, [call.operand(part).dim(dim) for part in call.made])


@reads("aten::chunk", "aten::tensor_split", functions=("chunk", "tensor_split", "hsplit", "vsplit", "dsplit"))
def equal_parts(call: PythonCall) -> Iterable[Counted]:
    """All parts are as large as the first one, if they were: no argument says how large."""
    sizes = [tuple(part.shape) for part in call.made]
    dims = [dim for dim, size in enumerate(call.input.shape) if sizes and size != sizes[0][dim]]
    if len(dims) != 1 or len(set(sizes)) != 1:
        return ()
    first, *others = (call.operand(part).dim(dims[0]) for part in call.made)
    return [Counted(first, other) for other in others]


_SPLITS = ("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::tensor_split")
_UNSAFE = ("aten::unsafe_split", "aten::unsafe_split_with_sizes", "aten::unsafe_chunk")

depends(*_UNSAFE)(moved)
carries("aten::unbind", *_SPLITS, *_UNSAFE)(moved_factors)
absent(*_UNSAFE, sizes="only torch's own code calls it", readers="only torch's own code calls it")
absent(
    *("aten::unbind", *_SPLITS, *_UNSAFE),
    multiply_adds="nothing is computed",
    positions="no argument is a position",
    modules="no module of torch takes parts",
    norms="it is no statistic",
)
absent("aten::unbind", *_SPLITS, dependence=SHARED)
absent("aten::unbind", *_SPLITS, *_UNSAFE, constants=SLOT_BY_SLOT)
