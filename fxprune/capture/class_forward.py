"""The path "eager": the model's own forward, whatever it calls, as a graph of one node."""

from __future__ import annotations

from torch import fx, nn

from fxprune.capture.captured import WHOLE_MODEL, Captured, FrontEnd
from fxprune.capture.inputs import Inputs, bound


def forward_as_node(model: nn.Module, inputs: Inputs) -> fx.Graph:
    """A graph of one node, which runs the model on a tuple of arguments and a dict of keywords.

    Raises `InputError` where the inputs do not fit the signature of forward.
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
