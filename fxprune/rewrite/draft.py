"""The copy of a captured model that becomes the smaller one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.captured import Captured
from fxprune.capture.complete_copy import put_attributes
from fxprune.capture.containers import is_container, map_parts
from fxprune.capture.given_attributes import parameters_with_attributes
from fxprune.capture.module_copy import deep_copy_with
from fxprune.capture.tensors import computed_tensors
from fxprune.capture.uncopied import why_no_copy
from fxprune.errors import RewriteError

_SPECS = ("_in_spec", "_out_spec")
_OF_THE_GRAPH = ("_graph", "_code", "_prologue_start", "_lineno_map")


@dataclass(frozen=True, eq=False)
class Draft:
    """A copy of a captured model, changed step by step until it is the smaller one.

    module: the copy, of the original's class or a `GraphModule`. graph: its graph, not yet compiled.
    before: node of the copy -> node of the original. Their names may differ, and several may have one original.
    said: sentences about attributes that could not be copied, for the record.
    """

    module: nn.Module
    graph: fx.Graph
    before: dict[fx.Node, fx.Node]
    said: tuple[str, ...] = ()


def draft_of(captured: Captured, tensors: Mapping[int, torch.Tensor]) -> Draft:
    """A deep copy of a captured model with other tensors in it. A tensor that has several names keeps them.

    tensors: id of a tensor of the original -> the tensor of the copy.

    Raises `RewriteError` where the model cannot be copied.
    """
    memo = _memo(captured.module, tensors)
    graph, before = _copied_graph(captured.graph)
    said: list[str] = []
    if isinstance(captured.module, fx.GraphModule):
        return Draft(_copied_graph_module(captured.module, memo, graph, said), graph, before, tuple(said))
    try:
        small = deep_copy_with(captured.module, memo, said)
    except Exception as error:
        at, why, do = why_no_copy(captured.module, memo, error)
        what = f"{type(captured.module).__name__} cannot be copied"
        raise RewriteError(what, node="forward", at=at, why=why, do=do) from error
    _own_attributes(captured.module, small)
    return Draft(small, graph, before, tuple(said))


def _own_attributes(original: nn.Module, small: nn.Module) -> None:
    """Replace the data objects that `deepcopy` has left shared, which return themselves: their sizes are changed."""
    counterparts = {id(module): small.get_submodule(path) for path, module in original.named_modules()}
    for module in original.modules():
        new = counterparts[id(module)]
        own: dict[str, Any] = module.__dict__
        for name, value in own.items():
            if value is None or new.__dict__.get(name) is not value or isinstance(value, tuple):
                continue
            if is_container(value):
                new.__dict__[name] = map_parts(value, {}, lambda part: part)


def _memo(module: nn.Module, tensors: Mapping[int, torch.Tensor]) -> dict[int, Any]:
    """The memo for `deepcopy`: id of an object -> the object to use as its copy.

    It holds all tensors, since `deepcopy` must not copy them. Some it could not copy: see `computed_tensors`.
    """
    return {**computed_tensors(module), **tensors}


def _copied_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph, and the original of each of its nodes."""
    made = fx.Graph(tracer_cls=getattr(graph, "_tracer_cls", None))
    made._codegen = copy.copy(graph._codegen)  # holds the structure of the inputs, which does not change
    copies: dict[fx.Node, fx.Node] = {}
    output: Any = made.graph_copy(graph, val_map=copies, return_output_node=True)
    if output is not None:  # `graph_copy` leaves the output node to its caller
        value, before = output
        copies[before] = made.output(value, type_expr=getattr(before, "type", None))
        copies[before].meta = copy.copy(before.meta)
    return made, {new: before for before, new in copies.items()}


def _copied_graph_module(
    module: fx.GraphModule, memo: dict[int, Any], graph: fx.Graph, said: list[str]
) -> fx.GraphModule:
    """A copy of a `GraphModule` around a copied graph, which is compiled once, when its sizes are settled."""
    made = fx.GraphModule(nn.Module(), fx.Graph(), module.__class__.__name__)
    for name, value in module.__dict__.items():
        if name in _SPECS:
            made.__dict__[name] = value
        elif name not in _OF_THE_GRAPH:
            made.__dict__[name] = copy.deepcopy(value, memo)
    for path, part in module.named_modules():
        for name, parameter in parameters_with_attributes(part):
            if id(parameter) in memo:
                put_attributes(memo[id(parameter)], parameter, memo, f"{path}.{name}".lstrip("."), said, cut=True)
    graph.owning_module = made
    made.__dict__["_graph"] = graph
    return made
