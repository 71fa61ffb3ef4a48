"""Exported programs of a user: the graph that is pruned, and the small graph exported again."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune.capture.dispatched import undispatched
from fxprune.capture.equal_modules import check_told_apart
from fxprune.capture.export_refusals import why_refused
from fxprune.capture.exported import exported_graph, silent_export
from fxprune.capture.inputs import Inputs, as_exported, normalize
from fxprune.capture.size_ranges import user_inputs
from fxprune.errors import CaptureError
from fxprune.offloaded import is_dispatched


def as_module(model: Any, example_inputs: Any) -> Any:
    """The graph of a program of `torch.export`, which is no module; any other model as it is.

    A model that accelerate has dispatched comes without its hooks. Raises `CaptureError` for equal modules.
    """
    if isinstance(model, ExportedProgram):
        return graph_of(model, example_inputs)
    check_told_apart(model)
    return undispatched(model) if is_dispatched(model) else model


def graph_of(program: ExportedProgram, example_inputs: Any) -> fx.GraphModule:
    """The graph of a program, with the names of its parameters and buffers, which are shared."""
    module = program.module()
    made = exported_graph(module, module, normalize(example_inputs), "ExportedProgram")
    for part in made.modules():
        part.training = False
    return made


def exported_again(program: ExportedProgram, small: nn.Module, example_inputs: Any) -> ExportedProgram:
    """The small graph as a program, with the open sizes of inputs that `program` has.

    Raises `CaptureError` with torch's message if torch cannot export it.
    """
    assert isinstance(small, fx.GraphModule), "a graph comes back as a graph"
    given = as_exported(small.graph, normalize(example_inputs))
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, given)
    first: Exception | None = None
    for named in (True, False):
        shapes = _open_sizes(program, (args, kwargs), named=named)
        try:
            with silent_export(oblivious=False):
                return torch.export.export(small, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            first = first or error
    assert first is not None
    raise CaptureError(
        "the small graph cannot be exported again",
        why=why_refused(first),
        do="pass program.module() instead, which gives a GraphModule",
    ) from first


def _open_sizes(program: ExportedProgram, inputs: Inputs, *, named: bool) -> Any:
    """The dimensions that are open in a program, for `dynamic_shapes` of `torch.export`.

    named: True for the ranges of the program, and equal sizes where it has them; False to let torch find out.
    """
    sizes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    dims: dict[Any, Any] = {}
    for node, leaf in zip(user_inputs(program), pytree.tree_leaves(inputs), strict=True):
        shape = node.meta["val"].shape if isinstance(leaf, torch.Tensor) else ()
        found = {dim: _dimension(program, size, dims, named=named) for dim, size in enumerate(shape)}
        if found:
            sizes[leaf] = found
    return sizes


def _dimension(program: ExportedProgram, size: Any, dims: dict[Any, Any], *, named: bool) -> Any:
    from torch.utils._sympy.numbers import int_oo  # here, because it imports sympy

    symbols = size.node.expr.free_symbols if isinstance(size, torch.SymInt) else ()
    if not symbols:
        return torch.export.Dim.STATIC
    if not named or len(symbols) > 1:
        return torch.export.Dim.AUTO
    [symbol] = symbols
    if symbol not in dims:
        bounds = program.range_constraints.get(symbol)
        lower = None if bounds is None or bounds.lower < 1 else int(bounds.lower)
        upper = None if bounds is None or bounds.upper == int_oo else int(bounds.upper)
        dims[symbol] = torch.export.Dim(str(symbol), min=lower, max=upper)
    factor = size.node.expr.coeff(symbol)
    rest = size.node.expr - factor * symbol
    if not (factor.is_Integer and rest.is_Integer and factor > 0):
        return torch.export.Dim.AUTO
    scaled = dims[symbol] if factor == 1 else int(factor) * dims[symbol]
    return scaled if rest == 0 else scaled + int(rest)
