"""Where folded constants stand in the smaller model: other numbers, new biases, and maps that are added."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.analysis.folded_constants import Constants, bias_name

aten = torch.ops.aten

STANDS_FOR = "fxprune_stands_for"
"""In the meta of a node that takes constants up: the text of what stood there before."""

WITH_BIAS = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
    *(aten.linear.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
}
"""Functions whose third argument is a bias."""


def place_constants(small: nn.Module, graph: fx.Graph, old: Mapping[fx.Node, fx.Node], constants: Constants) -> None:
    """Give layers and nodes of the smaller model the biases and maps that they did not have."""
    kind = next((p for p in small.parameters() if p.is_floating_point()), torch.empty(0))
    nodes = {before.name: node for node, before in old.items()}
    for where, bias in constants.biases.items():
        made = nn.Parameter(bias.to(dtype=kind.dtype, device=kind.device), requires_grad=kind.requires_grad)
        if not where.startswith("%"):
            small.get_submodule(where).bias = made
            continue
        node = nodes[where[1:]]
        small.register_parameter(bias_name(where), made)
        with graph.inserting_before(node):
            read = graph.get_attr(bias_name(where))
        read.meta[STANDS_FOR] = None
        node.args = (*node.args[:2], read, *node.args[3:]) if len(node.args) > 2 else node.args
        if len(node.args) <= 2:
            node.kwargs = {**node.kwargs, "bias": read}
    for name, values in constants.maps.items():
        node = nodes[name]
        small.register_buffer(f"{name}_map", values.to(dtype=kind.dtype, device=kind.device))
        add = aten.add.Tensor if isinstance(node.target, torch._ops.OpOverload) else operator.add
        with graph.inserting_after(node):
            read = graph.get_attr(f"{name}_map")
        read.meta[STANDS_FOR] = None
        with graph.inserting_after(read):
            added = graph.call_function(add, (node, read))
        added.meta = {**node.meta, STANDS_FOR: f"%{node.name}"}
        for user in [user for user in node.users if user is not added]:
            user.replace_input_with(node, added)
