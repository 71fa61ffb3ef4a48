"""The rewrite of a traced graph: new tensors, recounted modules, sizes settled while the new graph runs on fakes.

The run is the proof as well: every node's result must have the shape that its old vectors promise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.fake import Faker, run
from fxprune.capture.inputs import for_placeholders
from fxprune.capture.observe import Observation
from fxprune.capture.trace import module_of, source_of
from fxprune.capture.twin import twin
from fxprune.capture.walk import walk_on_fakes
from fxprune.channels.groups import Removal
from fxprune.errors import RewriteError
from fxprune.findings import Findings
from fxprune.rewrite.modules import Use, recount
from fxprune.rewrite.sizes import Site, resize
from fxprune.rewrite.tensors import shapes_of, shrink_all
from fxprune.rules import Operand

_OF_THE_GRAPH = ("_graph", "_code", "_tracer_cls", "_tracer_extras", "_prologue_start", "_lineno_map")


def rewrite(findings: Findings, removal: Removal) -> fx.GraphModule:
    """The smaller model: a new `GraphModule` that shares no tensor with the original.

    Raises `RewriteError` where a node's shape is not the promised one; nothing of the original has changed then.
    """
    faker = Faker()
    shapes = shapes_of(findings, removal)
    fakes = {name: faker.smaller(tensor, shapes[name]) for name, tensor in findings.tensors.items()}
    small, old = _copy(findings.graph_module, {id(findings.tensors[name]): fake for name, fake in fakes.items()})
    _recount_modules(small, findings, removal)
    _settle_sizes(small, old, findings, removal, faker)
    real = shrink_all(findings, removal)
    _fill(small, {id(fake): real[name] for name, fake in fakes.items()})
    small.graph.lint()
    small.recompile()
    return small


def _copy(original: fx.GraphModule, tensors: dict[int, torch.Tensor]) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A deep copy in which every tensor is replaced by another one, and the original of each of its nodes.

    Tensors that were shared stay shared. Nodes are told apart by identity: a copy may name them anew.
    """
    memo: dict[int, Any] = dict(tensors)
    for module in original.modules():  # what a hook computes anew in every forward (old weight_norm) is no leaf
        computed = (v for v in module.__dict__.values() if isinstance(v, torch.Tensor) and not v.is_leaf)
        memo.update((id(v), v.detach().clone()) for v in computed)
    small = fx.GraphModule(nn.Module(), fx.Graph(), original.__class__.__name__)
    for name, value in original.__dict__.items():
        if name not in _OF_THE_GRAPH:
            small.__dict__[name] = copy.deepcopy(value, memo)
    graph = fx.Graph(tracer_cls=getattr(original.graph, "_tracer_cls", None))
    copies: dict[fx.Node, fx.Node] = {}
    output: Any = graph.graph_copy(original.graph, val_map=copies, return_output_node=True)
    if output is not None:
        value, before = output
        copies[before] = graph.output(value, type_expr=getattr(before, "type", None))
        copies[before].meta = copy.copy(before.meta)
    graph._codegen = copy.deepcopy(original.graph._codegen)
    graph.owning_module = small
    small.__dict__["_graph"] = graph  # compiled once, when its sizes are settled
    return small, {new: before for before, new in copies.items()}


def _fill(small: nn.Module, tensors: dict[int, torch.Tensor]) -> None:
    """Put the real tensors where their fakes stood."""
    for module in small.modules():
        places: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for place in places:
            for name, value in place.items():
                if isinstance(value, torch.Tensor) and id(value) in tensors:
                    place[name] = tensors[id(value)]


def _recount_modules(small: fx.GraphModule, findings: Findings, removal: Removal) -> None:
    calls: dict[str, Use] = {}
    for node in findings.graph_module.graph.find_nodes(op="call_module"):
        first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        operand = findings.nodes.get(first.name) if isinstance(first, fx.Node) else None
        use = Use(
            removal,
            operand if isinstance(operand, Operand) else None,
            findings.nodes.get(node.name),
            findings.observations.get(node.name),
        )
        calls.setdefault(str(node.target), use)
    unused = Use(removal, None, None, None)
    for name, module in small.named_modules():
        recount(module, calls.get(name, unused))


def _settle_sizes(
    small: fx.GraphModule, old: dict[fx.Node, fx.Node], findings: Findings, removal: Removal, faker: Faker
) -> None:
    """Run the new graph on fake tensors; settle the sizes of each node just before it runs, check it just after."""
    fakes = twin(small, lambda tensor: tensor)
    values = for_placeholders(small.graph, findings.inputs)
    results: dict[fx.Node, Any] = {}
    had_users = {node for node in small.graph.nodes if node.users}

    def value(argument: Any) -> Any:
        return fx.map_arg(argument, lambda n: results[n]) if argument is not None else None

    def operand(argument: Any) -> Any:
        return findings.nodes[old[argument].name] if isinstance(argument, fx.Node) else argument

    witness = _Witness(removal)

    def visit(node: fx.Node, execute: Callable[[], Any]) -> Any:
        before = old[node]
        promised, observation = findings.nodes[before.name], findings.observations[before.name]
        witness.expect(observation)
        site = Site(node, before, removal, promised, observation, value, operand)
        try:
            if node.op in ("call_function", "call_method"):
                resize(site)
            results[node] = execute()
        except RewriteError:
            raise
        except Exception as error:
            raise _wrong(before, node, f"{type(error).__name__}: {error}") from error
        _check(node, before, promised, results[node], removal)
        return results[node]

    walk_on_fakes(small.graph, fakes, faker, values, visit, witness)
    _drop_orphans(small.graph, had_users)


class _Witness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operations inside a node and compares their shapes with what the same ones gave in the old graph.

    The result of a node proves too little: `view(n, 4, c // 4)` in an opaque function takes any c, but where whole
    heads went, 4 is not the number of heads any more. A node that runs other operations than before is not followed.
    """

    def __init__(self, removal: Removal) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.removal = removal
        self.expected: Iterator[tuple[str, list[Operand]]] = iter(())

    def expect(self, observation: Observation) -> None:
        """The next operations are those of this node."""
        self.expected = iter([entry for entry in observation.outputs if entry[0] != "aten::lift_fresh"])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = run(func, args, kwargs or {})
        if func.namespace == "prim" or func is torch.ops.aten.lift_fresh.default:  # a literal list has its own site
            return made
        name, promised = next(self.expected, ("", []))
        if name != func._schema.name:
            self.expected = iter(())
            return made
        tensors = [t for t in (made if isinstance(made, (tuple, list)) else (made,)) if isinstance(t, torch.Tensor)]
        for tensor, operand in zip(tensors, promised, strict=True):
            if tuple(tensor.shape) != self.removal.shape(operand.vectors):
                counts = self.removal.shape(operand.vectors)
                raise ValueError(f"{name} inside gives shape {tuple(tensor.shape)}, the analysis promises {counts}")
        return made


def _check(node: fx.Node, before: fx.Node, promised: Any, result: Any, removal: Removal) -> None:
    have = [t for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
    want = [o for o in pytree.tree_leaves(promised) if isinstance(o, Operand)]
    shapes = [tuple(t.shape) for t in have]
    counts = [removal.shape(o.vectors) for o in want]
    if shapes != counts:
        raise _wrong(before, node, f"its result has shape {shapes}, the analysis promises {counts}")


def _wrong(before: fx.Node, node: fx.Node, why: str) -> RewriteError:
    return RewriteError(
        "the smaller graph is not what the analysis promises",
        node=before.name,
        at=f"{module_of(before) or 'the model'} ({source_of(before)}), node %{before.name}: {node.format_node()}",
        why=why.strip().splitlines()[0],
        do="report this; until then `ignore` the layers whose channels enter here",
    )


def _drop_orphans(graph: fx.Graph, had_users: set[fx.Node]) -> None:
    """Erase nodes that only computed a size which is a number now. Others may act by side effects and stay."""
    for node in reversed(graph.nodes):
        if node in had_users and not node.users and node.op in ("call_function", "call_method", "get_attr"):
            graph.erase_node(node)
