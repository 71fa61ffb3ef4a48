"""The layers that the path "hooks" can shrink."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.channels.vector import Vector


def hookable(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The path and the module of every layer whose outputs a forward hook can fill up with zeros.

    These are linear layers and convolutions without groups. They are the only ones that use their parameters, and
    their weight is a plain parameter (no parametrization computes it).
    """
    uses = Counter(id(t) for _, t in model.named_parameters(remove_duplicate=False))
    for path, module in model.named_modules():
        plain = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) and getattr(module, "groups", 1) == 1
        own = list(module.parameters(recurse=False))
        if path and plain and "weight" in module._parameters and all(uses[id(t)] == 1 for t in own):
            yield path, module


def outputs_behind_hooks(findings: Findings) -> Iterator[tuple[str, Any, Vector]]:
    """The path, the module and the outputs of every hookable layer that has several outputs."""
    for path, layer in hookable(findings.captured.module):
        if findings.has_axis(f"{path}.weight", 0):
            yield path, layer, findings.axis_vector(f"{path}.weight", 0)
