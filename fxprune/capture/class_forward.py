"""The path "eager": a graph of one node, which runs the model's own forward."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fxprune.capture.captured import WHOLE_MODEL, Captured, FrontEnd
from fxprune.capture.inputs import Inputs, bound


def forward_as_node(model: nn.Module, inputs: Inputs) -> fx.Graph:
    """A graph that runs the model in one node, on a tuple of arguments and a dict of keyword arguments.

    A third placeholder takes the name of the method to call: "" for forward.

    The inputs are only compared with the signature of forward. Raises `InputError` if they do not fit.
    """
    bound(model, inputs)
    graph = fx.Graph()
    arguments = tuple(map(graph.placeholder, ("args", "kwargs", "method")))
    graph.output(graph.create_node("call_module", WHOLE_MODEL, arguments, name="forward"))
    return graph


def as_values(inputs: Inputs) -> list[Any]:
    """The inputs of a forward as one value per placeholder of the graph of `forward_as_node`."""
    return [*inputs, ""]


def _capture(model: nn.Module, inputs: Inputs) -> Captured:
    return Captured(CLASS_FORWARD, model, forward_as_node(model, inputs), as_values)


def _without_inputs(model: nn.Module) -> Captured:
    return Captured(CLASS_FORWARD, model, fx.Graph(), as_values)


CLASS_FORWARD = FrontEnd("eager", _capture, keeps_class=True, without_inputs=_without_inputs)
