"""Changes to the graph that `torch.export` makes: no nested regions, no assertions, no shared sizes."""

from __future__ import annotations

import functools
import operator
import os
from typing import Any

import torch
from torch import fx

from fxprune.capture.captured import fetch
from fxprune.capture.places import SOURCE

_ASSERTIONS = ("_assert_", "sym_constrain_range", "_functional_assert_", "_functional_sym_constrain_range")
_COUNTING = (torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default, torch.ops.aten.sym_stride.int)
_TORCH = os.path.dirname(torch.__file__) + os.sep
_EXPORTED = os.path.join(os.path.dirname(__file__), "exported.py")


def inline_regions(graph_module: fx.GraphModule) -> None:
    """Move the nodes of nested graphs into the graph around them. Changes `graph_module`.

    `torch.export` makes a nested graph for a block under `torch.no_grad` or `torch.enable_grad`, and for a block under
    `torch.autocast`; the latter are moved only if autocast is disabled. Results of blocks without gradients are
    detached.
    """
    higher = torch.ops.higher_order
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is higher.wrap_with_set_grad_enabled:
            enabled, inner, *operands = node.args
        elif node.target is higher.wrap_with_autocast and not node.args[2]:
            enabled, inner, operands = True, node.args[4], list(node.args[5:])
        else:
            continue
        region = fetch(graph_module, str(inner.target))
        inline_regions(region)
        _put_in_place(graph_module, node, region, operands, detach=not enabled)


def _put_in_place(
    graph_module: fx.GraphModule, node: fx.Node, region: fx.GraphModule, operands: list[Any], *, detach: bool
) -> None:
    graph = graph_module.graph
    taken = dict(zip(region.graph.find_nodes(op="placeholder"), operands, strict=True))
    results: Any = None
    with graph.inserting_before(node):
        for part in region.graph.nodes:
            if part.op == "output":
                results = fx.map_arg(part.args[0], lambda n: taken[n])
            elif part.op == "get_attr":
                name = f"{node.name}_{str(part.target).replace('.', '_')}"
                setattr(graph_module, name, fetch(region, str(part.target)))
                taken[part] = graph.get_attr(name)
            elif part.op != "placeholder":
                taken[part] = graph.node_copy(part, lambda n: taken[n])
        if detach:
            results = fx.map_arg(results, functools.partial(_detached, graph))
    for user in list(node.users):
        if user.target is operator.getitem and isinstance(results, (tuple, list)):
            user.replace_all_uses_with(results[int(str(user.args[1]))])
            graph.erase_node(user)
        else:
            user.replace_input_with(node, results)
    graph.erase_node(node)


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return node
    new = graph.call_function(torch.ops.aten.detach.default, (node,))
    new.meta = dict(node.meta)
    return new


def remove_assertions(graph: fx.Graph) -> None:
    """Erase assertions on sizes and types, and the nodes that only they read. Changes the graph.

    The `meta` of the other nodes is reduced to their module and their line in the user's source.
    """
    for node in reversed(graph.nodes):
        target = node.target
        asserts = isinstance(target, torch._ops.OpOverload) and target._schema.name.split("::")[-1].startswith(
            _ASSERTIONS
        )
        counts = target in _COUNTING or getattr(target, "__module__", "") in ("_operator", "torch", "math")
        if asserts or (not node.users and (node.op == "get_attr" or (node.op == "call_function" and counts))):
            graph.erase_node(node)
            continue
        source = _line_of_user(node)
        stack = node.meta.get("nn_module_stack") or {}
        paths = {key: value for key, value in stack.items() if not key.startswith("_empty")}
        node.meta = {"nn_module_stack": paths} if paths else {}
        if source:
            node.meta[SOURCE] = source


def unshare_sizes(graph: fx.Graph) -> None:
    """Give every user of a size like `batch * 8` its own copy of the node that computes it. Changes the graph.

    The number may count channels of different layers, which need not stay equal when the layers shrink.
    """
    for node in reversed(graph.nodes):
        if not isinstance(node.meta.get("val"), torch.SymInt) or not _is_product(node):
            continue
        for user in list(node.users)[1:]:
            with graph.inserting_before(node):
                user.replace_input_with(node, graph.node_copy(node))


def _is_product(node: fx.Node) -> bool:
    """True if a node is a product that has a literal number among its factors, or among their factors."""
    if node.target is not operator.mul:
        return False
    return any(type(a) is int or (isinstance(a, fx.Node) and _is_product(a)) for a in node.args)


def _line_of_user(node: fx.Node) -> str:
    """The innermost line of a node's stack trace that is not in torch, as file:line; "" if there is none."""
    places = []
    for line in (node.stack_trace or "").splitlines():
        parts = line.split('"')
        if (
            line.strip().startswith("File ")
            and len(parts) > 2
            and not parts[1].startswith((_TORCH, "torch/", _EXPORTED))
        ):
            places.append(f"{parts[1]}:{parts[2].split('line ')[-1].split(',')[0]}")
    return places[-1] if places else ""
