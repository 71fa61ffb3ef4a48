"""The path "hooks": a graph of one node, which runs the model. Layers shrink alone; hooks fill up their outputs."""

from __future__ import annotations

from torch import nn

from fxprune.capture.captured import Captured, FrontEnd
from fxprune.capture.class_forward import as_values, forward_as_node
from fxprune.capture.inputs import Inputs


def _capture(model: nn.Module, inputs: Inputs) -> Captured:
    return Captured(HOOKED, model, forward_as_node(model, inputs), as_values, real=True)


HOOKED = FrontEnd("hooks", _capture, keeps_class=True, needs_hooks=True)
