"""The guards of an exported program: checks on the sizes of its inputs, which raise torch's own error.

`torch.export` has fixed what it has read of these sizes (the number of steps of a loop, say). Without its guards the
graph would give numbers for other sizes too, and they would be wrong.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import GraphAppendingTracer

from fxprune.capture.inputs import Inputs, leaves_for_placeholders
from fxprune.errors import CaptureError

GUARDS = "_guards_fn"
"""Name of the guard function in the module of a program."""


def inline_guards(graph_module: fx.GraphModule, examples: list[Any]) -> None:
    """Put the checks of torch's guard function into the graph, one `torch._assert` for each. Changes `graph_module`.

    As nodes they can be pickled and exported again; the function, which torch makes from text, cannot. All guards are
    conditions on inputs, which keep their sizes, so that the smaller model has the same ones.

    examples: one value per placeholder, of the inputs that the program was exported for.

    Raises `CaptureError` if the function cannot be traced.
    """
    graph = graph_module.graph
    placeholders = graph.find_nodes(op="placeholder")
    for call in graph.find_nodes(op="call_module", target=GUARDS):
        tracer = _Tracer(graph, dict(zip(placeholders, examples, strict=True)))
        try:
            with graph.inserting_before(call):
                graph_module.get_submodule(GUARDS).forward(*(tracer.proxy(node) for node in call.args))
        except TypeError as error:  # it calls `math.sqrt` or `float` on a size, which give plain numbers
            raise CaptureError(
                "torch's guards on the sizes of the inputs cannot be nodes of a graph",
                why=str(error),
                do="export the model with fixed sizes yourself, and pass the program",
            ) from error
        graph.erase_node(call)
        delattr(graph_module, GUARDS)


def guards_hold(program: torch.export.ExportedProgram, inputs: Inputs) -> bool:
    """True if torch's guards let inputs pass: those of a batch of two may refuse a batch of one."""
    module = program.module()
    guards = getattr(module, GUARDS, None)
    try:
        if guards is not None:
            guards(*leaves_for_placeholders(module.graph, inputs))
    except AssertionError:
        return False
    return True


class _Tracer(GraphAppendingTracer):
    """Appends what a guard function does to a graph.

    Where the function branches on a condition (`a and b`), the condition itself becomes a check: that it is what it is
    for the example.
    """

    def __init__(self, graph: fx.Graph, values: dict[fx.Node, Any]) -> None:
        super().__init__(graph)
        self.values = values

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Number(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a condition on the example inputs."""
        truth = bool(self._value(obj.node))
        held = obj if truth else self.create_proxy("call_function", operator.not_, (obj,), {})
        self.create_proxy("call_function", torch._assert, (held, f"Guard failed: {obj.node.format_node()}"), {})
        return truth

    def _value(self, node: fx.Node) -> Any:
        if node not in self.values:
            args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
            method = node.op == "call_method"
            call: Any = getattr(args[0], str(node.target)) if method else node.target
            self.values[node] = call(*args[method:], **kwargs)
        return self.values[node]


class _Number(fx.Proxy):
    """A size, or a number computed from sizes, which can be rounded as numbers are."""

    def __trunc__(self) -> Any:
        return self._rounded(math.trunc)

    def __floor__(self) -> Any:
        return self._rounded(math.floor)

    def __ceil__(self) -> Any:
        return self._rounded(math.ceil)

    def __round__(self, digits: int | None = None) -> Any:
        return self._rounded(round, digits)

    def _rounded(self, function: Callable[..., Any], *more: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, *more), {})
