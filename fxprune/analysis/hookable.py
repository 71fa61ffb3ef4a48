"""Layers whose outputs a forward hook can put back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn


def hookable(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers whose outputs a forward hook can put back, whatever the code around them: path and module.

    They own their weight alone, and nothing else computes it.
    """
    uses = Counter(id(t) for _, t in model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules():
        plain = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) and getattr(module, "groups", 1) == 1
        own = list(module.parameters(recurse=False))
        if path and plain and "weight" in module._parameters and all(uses[id(t)] == 1 for t in own):
            yield path, module
