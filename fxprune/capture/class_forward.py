"""The path "eager": a graph of one node, which runs the model's own forward."""

from __future__ import annotations

from torch import fx, nn

from fxprune.capture.captured import WHOLE_MODEL, Captured, FrontEnd
from fxprune.capture.inputs import Inputs, bound


def forward_as_node(model: nn.Module, inputs: Inputs) -> fx.Graph:
    """A graph that runs the model in one node, on a tuple of arguments and a dict of keyword arguments.

    The inputs are only compared with the signature of forward. Raises `InputError` if they do not fit.
    """
    bound(model, inputs)
    graph = fx.Graph()
    arguments = (graph.placeholder("args"), graph.placeholder("kwargs"))
    graph.output(graph.create_node("call_module", WHOLE_MODEL, arguments, name="forward"))
    return graph


def _capture(model: nn.Module, inputs: Inputs) -> Captured:
    return Captured(CLASS_FORWARD, model, forward_as_node(model, inputs), list)


def _without_inputs(model: nn.Module) -> Captured:
    return Captured(CLASS_FORWARD, model, fx.Graph(), list)


CLASS_FORWARD = FrontEnd("eager", _capture, keeps_class=True, without_inputs=_without_inputs)
