"""Recounts the attributes of one module: `out_channels`, `groups`, `num_features` and the like.

Each is computed again, from the new weight of the module, from the vectors of its input, or from what its operation
counted. The functions for that are registered with `recounts`, in the files of `fxprune/ops`.
"""

from __future__ import annotations

from torch import nn

from fxprune.analysis.settings import set_attribute
from fxprune.ops.aspects import MODULES
from fxprune.ops.leaves import leaf_rule
from fxprune.ops.module_use import Use


def recount(module: nn.Module, use: Use) -> None:
    """Set every counting attribute of a module whose parameters have their new sizes."""
    for kind, function in MODULES.keys.items():
        if isinstance(module, kind):
            for name, value in function(module, use).items():
                if value is not None and getattr(module, name) != value:
                    set_attribute(module, name, value)
    if leaf_rule(module) is not None and use.counts is not None:
        for name, vectors in use.counts.items():
            sizes = use.removal.shape(vectors)
            set_attribute(module, name, sizes if isinstance(getattr(module, name), tuple) else sizes[0])
