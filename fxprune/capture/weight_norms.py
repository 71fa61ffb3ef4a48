"""Weights that torch computes from others: weight norm and spectral norm, in their old and in their new form.

Both divide by a norm over the whole weight, or over rows of it: what is removed from a row changes the rest of it. One
tensor of each multiplies or divides the weight and does nothing else, and so can undo that:

    weight norm      w[o, i] = g[o] * v[o, i] / |v[o, :]|        g
    spectral norm    w = w_orig / sum_oi u[o] w_orig[o, i] v[i]    u, in evaluation; training makes it again
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fxprune.capture.captured import fetch

_CALLS = (torch._weight_norm, torch.ops.aten._weight_norm.default, torch.ops.aten._weight_norm_interface.default)

ALL = -1
"""The `dim` of a weight norm that takes one norm of all numbers."""


@dataclass(frozen=True)
class NormedWeight:
    """A weight that is computed with a norm.

    carrier: the name of the tensor that can undo a change of the norm. weight: that of the tensor whose norm is taken.
    dim: the dimension of rows. other: for a spectral norm the name of its second vector, else "".
    """

    carrier: str
    weight: str
    dim: int
    other: str = ""


def normed_weights(model: nn.Module) -> tuple[NormedWeight, ...]:
    """All weights of a model that are computed with a norm. One whose carrier has a second use is left out."""
    found = list(dict.fromkeys(_found(model)))
    carriers = Counter(id(fetch(model, normed.carrier)) for normed in _once(model, found))
    return tuple(normed for normed in found if carriers[id(fetch(model, normed.carrier))] == 1)


def _once(model: nn.Module, found: list[NormedWeight]) -> list[NormedWeight]:
    """Those with other tensors than the ones before: a module may have several names."""
    return list({(id(fetch(model, n.carrier)), id(fetch(model, n.weight))): n for n in found}.values())


def _found(model: nn.Module) -> Iterator[NormedWeight]:
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = path and f"{path}."
        if isinstance(module, ParametrizationList) and len(module) == 1:
            yield from _parametrized(prefix, module[0])
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield NormedWeight(f"{prefix}{hook.name}_g", f"{prefix}{hook.name}_v", hook.dim)
            elif isinstance(hook, SpectralNorm):
                start = f"{prefix}{hook.name}"
                yield NormedWeight(f"{start}_u", f"{start}_orig", hook.dim, f"{start}_v")
        if isinstance(module, fx.GraphModule):
            yield from _in_graph(prefix, module.graph)


def _parametrized(prefix: str, module: Any) -> Iterator[NormedWeight]:
    if type(module) is _WeightNorm:
        yield NormedWeight(f"{prefix}original0", f"{prefix}original1", module.dim)
    elif type(module) is _SpectralNorm and hasattr(module, "_u"):
        yield NormedWeight(f"{prefix}0._u", f"{prefix}original", module.dim, f"{prefix}0._v")


def _in_graph(prefix: str, graph: fx.Graph) -> Iterator[NormedWeight]:
    """Those that are nodes of a graph."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _CALLS and not node.kwargs and len(node.args) > 1:
            v, g = node.args[:2]
            if all(isinstance(n, fx.Node) and n.op == "get_attr" for n in (v, g)):
                dim = node.args[2] if len(node.args) > 2 else 0
                yield NormedWeight(f"{prefix}{g.target}", f"{prefix}{v.target}", dim)
