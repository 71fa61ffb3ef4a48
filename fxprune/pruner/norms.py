"""The batch norms that a config lists beside the layers before them: which norm follows which layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.errors import PlanError
from fxprune.pruner.layers import BATCH_NORMS, LAYERS, outputs_of
from fxprune.pruner.targets import LayerToPrune

PASSED = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardtanh, nn.Sigmoid, nn.Tanh),
)
"""Modules between a layer and its norm that keep every channel where it is."""

PASSED_FUNCTIONS: frozenset[Any] = frozenset(
    (
        *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.dropout, F.tanh, F.sigmoid),
        *(torch.relu, torch.tanh, torch.sigmoid, "relu", "relu_", "tanh", "sigmoid", "contiguous"),
    )
)
"""The same as functions, and as methods of tensors by name."""


def with_their_norms(model: nn.Module, targets: list[LayerToPrune]) -> list[LayerToPrune]:
    """Returns the targets of a config; a batch norm that it lists beside the layer before it loses the same channels.

    A norm whose layer the config does not list stays a target of its own. Raises `PlanError` where the layer cannot be
    told, and for a norm that has other settings than its layer.
    """
    norms = [t for t in targets if isinstance(t.layer, BATCH_NORMS)]
    layers = {id(t.layer): t for t in targets if isinstance(t.layer, LAYERS)}
    if not norms or not layers:
        return targets
    sources = _sources(model)
    joined: dict[int, LayerToPrune] = {}
    for norm in norms:
        widths = [t for t in layers.values() if outputs_of(t.layer) == outputs_of(norm.layer)]
        if isinstance(sources, str):
            if widths:
                raise _unknown(norm, widths[0], why=sources)
            continue
        found = sources.get(id(norm.layer), {})
        listed = [layers[key] for key in found if key in layers and layers[key] in widths]
        if not listed:
            continue
        if len(found) > 1:
            why = f"it is called behind several layers: {', '.join(found.values())}"
            raise _unknown(norm, listed[0], why=why)
        layer = joined.get(id(listed[0].layer), listed[0])
        if layer.norm is not None:
            raise _unknown(norm, layer, why=f'"{layer.norm_name}" follows "{layer.name}" already')
        if (other := dict(norm.settings)) and other != dict(layer.settings):
            raise PlanError(
                f'"{norm.name}" has other settings than "{layer.name}", the layer before it',
                why=f"it loses the same channels; its settings are {other}, those of the layer {dict(layer.settings)}",
                do="leave the settings of the norm out; prune_bias it may have",
            )
        bias = layer.prune_bias if norm.prune_bias is None else norm.prune_bias
        joined[id(layer.layer)] = replace(layer, norm_name=norm.name, norm=norm.layer, norm_prune_bias=bias)
    taken = {id(t.norm) for t in joined.values()}
    return [joined.get(id(t.layer), t) for t in targets if id(t.layer) not in taken]


def _unknown(norm: LayerToPrune, layer: LayerToPrune, *, why: str) -> PlanError:
    return PlanError(
        f'the layer that "{norm.name}" follows is not known',
        why=why.partition("\n")[0],
        do=f'write the pair, such as ("{layer.name}", "{norm.name}"), in one entry of the config',
    )


class _Tracer(fx.Tracer):
    """Stops at layers and norms, of subclasses too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LAYERS, *BATCH_NORMS, *PASSED)) or super().is_leaf_module(m, module_qualified_name)


def _sources(model: nn.Module) -> Mapping[int, Mapping[int, str]] | str:
    """Returns {id of a norm: {id of a layer before it: its name}}, or why the model cannot be traced.

    What another operation than a layer makes is a source without a module, under the id of its node.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # the model's own code runs here, and may raise anything
        return f"the model cannot be traced: {error}" if str(error) else f"tracing raises {type(error).__name__}"
    found: dict[int, dict[int, str]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(norm := model.get_submodule(node.target), BATCH_NORMS):
            source = _before(model, node)
            layer: Any = model.get_submodule(str(source.target)) if source.op == "call_module" else source
            found.setdefault(id(norm), {})[id(layer)] = f'"{source.target}"'
    return found


def _before(model: nn.Module, node: fx.Node) -> fx.Node:
    """Returns the node whose channels reach a node unchanged in place."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        if node.op == "call_module":
            if not isinstance(model.get_submodule(str(node.target)), PASSED):
                return node
        elif node.target not in PASSED_FUNCTIONS:
            return node
    return node
