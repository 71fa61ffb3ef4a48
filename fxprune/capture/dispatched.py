"""Models that accelerate has dispatched, as plain ones."""

from __future__ import annotations

from torch import nn

from fxprune.capture.module_copy import copy_module
from fxprune.offloaded import dispatch_of, without_hooks


def undispatched(model: nn.Module) -> nn.Module:
    """A copy of a dispatched model without hooks, around the same weights: see `fxprune.offloaded`.

    Raises `CaptureError` for hooks of accelerate that do more than to move weights and inputs.
    """
    stand_ins = dispatch_of(model).tensors
    made = copy_module(model, lambda tensor: stand_ins.get(id(tensor), tensor))
    for module in made.modules():
        without_hooks(module)
    return made
