"""Folded constants in the smaller model: new biases, and maps that are added to results."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.analysis.folded_constants import FoldedConstants, bias_name
from fxprune.rewrite.draft import Draft

aten = torch.ops.aten

STANDS_FOR = "fxprune_stands_for"
"""A key in the meta of a node that was added for constants: the name of the node in whose place it stands, or None."""

WITH_BIAS = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
    *(aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
}
"""Functions whose third argument is a bias."""


def place_constants(draft: Draft, constants: FoldedConstants) -> None:
    """Add the new biases and maps to layers and nodes of the smaller model."""
    if not (constants.biases or constants.maps):
        return
    kind = next((p for p in draft.module.parameters() if p.is_floating_point()), torch.empty(0))
    nodes = {before.name: node for node, before in draft.before.items()}
    for where, values in constants.biases.items():
        bias = nn.Parameter(values.to(dtype=kind.dtype, device=kind.device), requires_grad=kind.requires_grad)
        if where.startswith("%"):
            draft.module.register_parameter(bias_name(where), bias)
            _read_bias(draft.graph, nodes[where[1:]], bias_name(where))
        else:
            draft.module.get_submodule(where).bias = bias
    for name, values in constants.maps.items():
        draft.module.register_buffer(f"{name}_map", values.to(dtype=kind.dtype, device=kind.device))
        _add(draft.graph, nodes[name], f"{name}_map")


def _read_bias(graph: fx.Graph, node: fx.Node, name: str) -> None:
    """Pass a parameter as the bias of a function. name: that of the parameter."""
    with graph.inserting_before(node):
        read = graph.get_attr(name)
    read.meta[STANDS_FOR] = None
    if len(node.args) > 2:
        node.args = (*node.args[:2], read, *node.args[3:])
    else:
        node.kwargs = {**node.kwargs, "bias": read}


def _add(graph: fx.Graph, node: fx.Node, name: str) -> None:
    """Add a buffer to the result of a node, for all its users. name: that of the buffer."""
    add = aten.add.Tensor if isinstance(node.target, torch._ops.OpOverload) else operator.add
    with graph.inserting_after(node):
        read = graph.get_attr(name)
    read.meta[STANDS_FOR] = None
    with graph.inserting_after(read):
        added = graph.call_function(add, (node, read))
    added.meta = {**node.meta, STANDS_FOR: f"%{node.name}"}
    for user in [user for user in node.users if user is not added]:
        user.replace_input_with(node, added)
