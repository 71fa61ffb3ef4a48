"""Models that accelerate has dispatched, as plain ones."""

from __future__ import annotations

from torch import nn

from fxprune.capture.module_copy import copy_module
from fxprune.offloaded import dispatch_of, let_library_read, without_hooks


def undispatched(model: nn.Module) -> nn.Module:
    """A copy of a dispatched model without hooks, around the same weights: see `fxprune.offloaded`.

    Raises `CaptureError` for hooks of accelerate that do more than to move weights and inputs.
    """
    stand_ins = dispatch_of(model).tensors
    made = copy_module(model, lambda tensor: stand_ins.get(id(tensor), tensor))
    for module in made.modules():
        without_hooks(module)
    return made


def readable(model: nn.Module) -> nn.Module:
    """A copy of a dispatched model whose weights `save_pretrained` of transformers reads, wherever they lie.

    transformers itself finds them only where `device_map` was used, and not those of modules with several hooks.
    """
    made = undispatched(model)
    let_library_read(made)
    return made
