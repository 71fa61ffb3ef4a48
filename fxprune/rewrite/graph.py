"""The rewrite of a traced graph: new tensors, recounted modules, sizes settled while the new graph runs on fakes.

The run is the proof as well: every node's result must have the shape that its old vectors promise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from fxprune.analysis.after_removal import shapes_after
from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import Constants
from fxprune.analysis.observed import Observation, Visit
from fxprune.capture.caches import clean_caches
from fxprune.capture.captured import Captured
from fxprune.capture.fake_tensors import Faker
from fxprune.capture.module_copy import twin
from fxprune.capture.scopes import Scopes
from fxprune.capture.traced import module_of, source_of
from fxprune.capture.values import leaves, tensors_in
from fxprune.capture.walk import walk
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.errors import RewriteError
from fxprune.ops import Operand
from fxprune.proof.shapes import ContradictionError, Witness
from fxprune.rewrite.attributes import settle_settings
from fxprune.rewrite.constants import place_constants
from fxprune.rewrite.hooks import reinsert
from fxprune.rewrite.modules import SizeError, Use, recount
from fxprune.rewrite.norms import preserve_modules, preserve_nodes, rescaled
from fxprune.rewrite.recurrent import refresh
from fxprune.rewrite.sizes import Site, resize
from fxprune.rewrite.tensors import shrink_all

_LOOSE = {
    *(torch.ops.aten.einsum.default, torch.ops.aten.linear.default, torch.ops.aten.matmul.default),
    torch.ops.aten.scaled_dot_product_attention.default,
}
"""Nodes inside which other sizes may lead to other operations; their results are checked."""

_SPECS = ("_in_spec", "_out_spec")
_OF_THE_GRAPH = ("_graph", "_code", "_tracer_cls", "_tracer_extras", "_prologue_start", "_lineno_map")


def rewrite(findings: Findings, removal: Removal, constants: Constants | None = None) -> nn.Module:
    """The smaller model, which shares no tensor with the original: of its class where the capture kept that, else a
    `GraphModule`.

    Args:
        constants: what channels that went leave behind in those that stay.

    Raises `RewriteError` where a node's shape is not the promised one; nothing of the original has changed then.
    """
    faker, constants = Faker(), constants or Constants()
    shapes = shapes_after(findings, removal)
    fakes = {name: faker.smaller(tensor, shapes[name]) for name, tensor in findings.tensors.items()}
    small, graph, old = copied(findings.captured, {id(findings.tensors[name]): fake for name, fake in fakes.items()})
    _recount_modules(small, findings, removal)
    settle_settings(small, findings, removal)
    if not findings.captured.real:
        _settle_sizes(small, graph, old, findings, removal, faker)
    preserve_modules(small, findings, removal)
    preserve_nodes(small, graph, old, findings, removal)
    real = shrink_all(findings, removal)
    for name, numbers in {**rescaled(findings, removal), **constants.values}.items():
        if name in real:
            real[name].detach().copy_(numbers)
    _fill(small, {id(fake): real[name] for name, fake in fakes.items()})
    place_constants(small, graph, old, constants)
    if findings.captured.path == "hooks":
        reinsert(small, findings, removal)
    if isinstance(small, fx.GraphModule):
        small.graph.lint()
        small.recompile()
    return small


def copied(captured: Captured, tensors: dict[int, torch.Tensor]) -> tuple[nn.Module, fx.Graph, dict[fx.Node, fx.Node]]:
    """A deep copy in which every tensor is replaced by another one, its graph, and the original of each of its nodes.

    Tensors that were shared stay shared. Nodes are told apart by identity: a copy may name them anew.
    """
    memo: dict[int, Any] = dict(tensors)
    for module in captured.module.modules():  # what a hook computes anew in every forward (old weight_norm) is no leaf
        computed = (v for v in module.__dict__.values() if isinstance(v, torch.Tensor) and not v.is_leaf)
        memo.update((id(v), memo.get(id(v), v.detach().clone())) for v in computed)
    graph = fx.Graph(tracer_cls=getattr(captured.graph, "_tracer_cls", None))
    copies: dict[fx.Node, fx.Node] = {}
    output: Any = graph.graph_copy(captured.graph, val_map=copies, return_output_node=True)
    if output is not None:
        value, before = output
        copies[before] = graph.output(value, type_expr=getattr(before, "type", None))
        copies[before].meta = copy.copy(before.meta)
    old = {new: before for before, new in copies.items()}
    if not isinstance(captured.module, fx.GraphModule):
        try:
            return copy.deepcopy(captured.module, memo), graph, old
        except Exception as error:
            raise RewriteError(
                f"{type(captured.module).__name__} cannot be copied",
                node="forward",
                why=f"{type(error).__name__}: {error}",
                do="keep what cannot be copied out of the model's attributes, or give it a __deepcopy__",
            ) from error
    small = fx.GraphModule(nn.Module(), fx.Graph(), captured.module.__class__.__name__)
    for name, value in captured.module.__dict__.items():
        if name in _SPECS:
            small.__dict__[name] = value
        elif name not in _OF_THE_GRAPH:
            small.__dict__[name] = copy.deepcopy(value, memo)
    graph._codegen = copy.copy(captured.graph._codegen)  # holds the structure of inputs, which nobody changes
    graph.owning_module = small
    small.__dict__["_graph"] = graph  # compiled once, when its sizes are settled
    return small, graph, old


def _fill(small: nn.Module, tensors: dict[int, torch.Tensor]) -> None:
    """Put the real tensors where their fakes stood."""
    for module in small.modules():
        places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for place in places:
            for name, value in place.items():
                if isinstance(value, torch.Tensor) and id(value) in tensors:
                    place[name] = tensors[id(value)]
        refresh(module)


def _recount_modules(small: nn.Module, findings: Findings, removal: Removal) -> None:
    vectors = _vectors_by_module(findings)
    visits = {**_visits_of_parameters(findings), **findings.observed.visits}
    for name, module in reversed(list(small.named_modules())):  # some count what the modules inside have become
        visit = visits.get(name)
        own = vectors.get(name, {})
        if visit is None:
            use = Use(removal, None, None, None, own)
        else:
            first = next((o for o in visit.inputs if isinstance(o, Operand)), None)
            use = Use(removal, first, visit.output, visit.observation, own)
        try:
            recount(module, use)
        except SizeError as error:
            calls = findings.captured.graph.find_nodes(op="call_module")
            node = next((n for n in calls if not n.target or f"{name}.".startswith(f"{n.target}.")), None)
            if node is not None:  # else nobody calls it
                raise _wrong(node, node, str(error), name, error.vectors) from error


def _visits_of_parameters(findings: Findings) -> dict[str, Visit]:
    """In a graph that reads a module's parameters one by one, the operation that does stands for the module."""
    visits: dict[str, Visit] = {}
    nodes, observations = findings.observed.nodes, findings.observed.observations
    for node in findings.captured.graph.find_nodes(op="get_attr"):
        owner = str(node.target).rpartition(".")[0]
        for user in node.users:
            first = nodes.get(user.args[0].name) if user.args and isinstance(user.args[0], fx.Node) else None
            if isinstance(first, Operand):
                made, observed = nodes[user.name], observations[user.name]
                visits.setdefault(owner, Visit((first,), made, observed))
    return visits


def _vectors_by_module(findings: Findings) -> dict[str, dict[str, dict[int, Vector]]]:
    """Module -> parameter or buffer anywhere below it, by its name from there -> dimension -> vector."""
    made: dict[str, dict[str, dict[int, Vector]]] = {}
    for axis in findings.axes:
        for name in findings.names_of(axis.parameter):
            parts = name.split(".")
            for k in range(len(parts)):
                below = made.setdefault(".".join(parts[:k]), {})
                below.setdefault(".".join(parts[k:]), {})[axis.dim] = axis.vector
    return made


def _settle_sizes(
    small: nn.Module,
    graph: fx.Graph,
    old: dict[fx.Node, fx.Node],
    findings: Findings,
    removal: Removal,
    faker: Faker,
) -> None:
    """Run the new graph on fake tensors; settle the sizes of each node just before it runs, check it just after."""
    fakes = twin(small, lambda tensor: tensor)
    values = findings.captured.values(findings.inputs)
    results: dict[fx.Node, Any] = {}
    observed = findings.observed
    had_users = {node for node in graph.nodes if node.users}

    def value(argument: Any) -> Any:
        return fx.map_arg(argument, lambda n: results[n]) if argument is not None else None

    def operand(argument: Any) -> Any:
        return findings.observed.nodes[old[argument].name] if isinstance(argument, fx.Node) else argument

    scopes = Scopes(fakes)
    originals = dict(findings.captured.module.named_modules())
    replaced = {name for name, m in small.named_modules() if name and type(m) is not type(originals[name])}
    witness = Witness(removal, scopes, replaced)

    def visit(node: fx.Node, execute: Callable[[], Any]) -> Any:
        before = old[node]
        promised, observation = observed.nodes[before.name], observed.observations[before.name]
        scopes.node(before.name)
        witness.expected = Observation() if node.target in _LOOSE else observation
        site = Site(node, before, removal, promised, observation, value, operand)
        try:
            if node.op in ("call_function", "call_method"):
                resize(site)
            results[node] = execute()
        except ContradictionError as error:
            raise _wrong(before, node, str(error), scopes.now.path, error.vectors) from None
        except RewriteError:
            raise
        except Exception as error:
            raise _wrong(before, node, f"{type(error).__name__}: {error}", scopes.now.path, ()) from error
        _check(node, before, promised, results[node], removal)
        if witness.deferred:
            scope, first = witness.deferred[0]
            raise _wrong(before, node, str(first), scope, tuple(v for _, e in witness.deferred for v in e.vectors))
        return results[node]

    with clean_caches(findings.model):
        walk(graph, fakes, faker, values, visit, (scopes.watching(), witness))
    _drop_orphans(graph, had_users)


def _check(node: fx.Node, before: fx.Node, promised: Any, result: Any, removal: Removal) -> None:
    have = tensors_in(result)
    want = [o for o in leaves(promised, Operand) if isinstance(o, Operand)]
    shapes = [tuple(t.shape) for t in have]
    counts = [removal.shape(o.vectors) for o in want]
    if shapes != counts:
        raise _wrong(before, node, f"its result has shape {shapes}, the analysis promises {counts}", "", ())


def _wrong(before: fx.Node, node: fx.Node, why: str, scope: str, vectors: tuple[Vector, ...]) -> RewriteError:
    inside = f", in {scope}" if scope and not scope.startswith("%") and scope != before.target else ""
    return RewriteError(
        "the smaller graph is not what the analysis promises",
        node=before.name,
        scope=scope,
        vectors=vectors,
        at=f"{module_of(before) or 'the model'} ({source_of(before)}), %{before.name}: {node.format_node()}{inside}",
        why=why.strip().splitlines()[0],
        do="report this; until then `ignore` the layers whose channels enter here",
    )


def _drop_orphans(graph: fx.Graph, had_users: set[fx.Node]) -> None:
    """Erase nodes that only computed a size which is a number now. Others may act by side effects and stay."""
    for node in reversed(graph.nodes):
        if node in had_users and not node.users and node.op in ("call_function", "call_method", "get_attr"):
            graph.erase_node(node)
