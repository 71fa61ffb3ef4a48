"""Module attributes that count something: `out_channels`, `groups`, `num_features` and their kind.

Nothing is patched: every attribute is recounted, from the module's new weight where it has one, else from the vectors
of its input or from what its operation was seen to count. How stands with the operation, see `fxprune/ops`.
"""

from __future__ import annotations

from torch import nn

from fxprune.ops.aspects import MODULES
from fxprune.ops.leaves import leaf_rule
from fxprune.ops.module_use import Use


def recount(module: nn.Module, use: Use) -> None:
    """Set every counting attribute of a module whose parameters have their new sizes."""
    for kind, function in MODULES.keys.items():
        if isinstance(module, kind):
            for name, value in function(module, use).items():
                if value is not None and getattr(module, name) != value:
                    setattr(module, name, value)
    if leaf_rule(module) is not None and use.counts is not None:
        for name, vectors in use.counts.items():
            sizes = use.removal.shape(vectors)
            setattr(module, name, sizes if isinstance(getattr(module, name), tuple) else sizes[0])
