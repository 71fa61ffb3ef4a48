"""`insert_thresholds`: a copy of a model with thresholds after its activations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.arguments import checks_names
from fxprune.capture.places import module_of
from fxprune.capture.traced import traced_graph
from fxprune.errors import CaptureError, PlanError, nearest
from fxprune.names import Level, Match, Names, checked, entries_of, find, names_of, show
from fxprune.running.activation_nodes import is_activation, is_activation_module, is_threshold
from fxprune.sparse.activations.layers import ThresholdActivation

RELUS: tuple[Any, ...] = (
    *(nn.ReLU, nn.ReLU6, F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_),
)
"""Every spelling of a ReLU: thresholds are put after these unless `after` names other activations."""

_PATHS = ("fx", "modules")


@dataclass(frozen=True)
class Inserted:
    """A model with thresholds.

    layers: name of a `ThresholdActivation` in `model` -> name of the activation before it.
    path: "fx" if `model` is a `GraphModule`, "modules" if it keeps its class. why_not: why the path is not "fx".
    """

    model: nn.Module
    layers: Mapping[str, str]
    path: str
    why_not: str = ""


@checks_names
def insert_thresholds(
    model: nn.Module, after: Any = None, *, threshold: Any, magnitude: bool = True, path: str | None = None
) -> Inserted:
    """Returns a copy of a model with a `ThresholdActivation` after each of the named activations.

    On the path "fx", the copy is traced symbolically, and every call gets its own threshold: calls of functions
    (`F.relu(x)`) and methods (`x.relu()`), and each call of a module that is called several times. The graph keeps the
    mode that the model is in now wherever forward reads it, as in `F.dropout(x, training=self.training)`.

    If tracing fails, the path is "modules": an `nn.Sequential` of the module and a threshold replaces each named
    module. A module that is called several times then has one threshold, and functions cannot be named.

    Args:
        model: only read.
        after: one or several of: a pattern (see `fxprune.names`), a function (`F.relu`, `torch.Tensor.relu`), the name
            of a node of the graph. A block means the activations in it, a glob the activations that it matches. Each
            must match something. None means every ReLU, in all its spellings.
        threshold, magnitude: as for `ThresholdActivation`. All layers get the same rule; one that learns from the
            activations learns in each layer separately.
        path: "fx" or "modules"; None tries both in this order.

    Raises `PlanError` if `after` names something that the model does not have, or a function on the path "modules". It
    also raises it for an in-place activation whose result is not used, because the model reads the changed input
    instead. Raises `CaptureError` if path="fx" is asked for and tracing fails.

    >>> from fxprune.sparse.activations.thresholds import Quantile
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> made = insert_thresholds(net, threshold=Quantile(0.8))
    >>> made.layers, made.path
    ({'1_threshold': '1'}, 'fx')
    """
    make = _layer_maker(checked(model), threshold, magnitude)
    if path is not None and path not in _PATHS:
        raise PlanError(
            f"unknown path {path!r}",
            at=f"insert_thresholds(path={path!r})",
            why="there are two ways to find activations: a traced graph, and modules",
            do='use "fx" or "modules"',
        )
    entries = list(RELUS) if after is None else entries_of(after)
    if not entries:
        raise PlanError(
            "after names nothing",
            at="insert_thresholds(after=[])",
            why="the list is empty",
            do="leave after out for all ReLUs, or name activations",
        )
    copied = copy.deepcopy(model)
    names = names_of(model, parameters=False)
    if path == "modules":
        return _in_modules(copied, entries, names, make, after is None, "")
    try:
        traced = traced_graph(copied)
    except CaptureError as error:
        if path is not None:
            raise
        return _in_modules(copied, entries, names, make, after is None, _failure(error))
    return _in_graph(traced, entries, names, make, after is None)


def _layer_maker(model: nn.Module, threshold: Any, magnitude: bool) -> Callable[[bool], ThresholdActivation]:
    """Returns a function that makes layers on the model's device; makes one at once, to refuse bad options early."""
    first = next(iter([*model.parameters(), *model.buffers()]), None)

    def make(training: bool) -> ThresholdActivation:
        layer = ThresholdActivation(threshold, magnitude=magnitude)
        return layer.train(training).to(None if first is None else first.device)

    make(True)
    return make


def _failure(error: CaptureError) -> str:
    """Returns the place that could not be traced and the reason, in one line."""
    return "; ".join(line.removeprefix("  why  ") for line in str(error).splitlines() if not line.startswith("  do "))


# -- in a graph -------------------------------------------------------------------------------------------


def _in_graph(
    traced: fx.GraphModule, entries: list[Any], names: Names, make: Callable[[bool], ThresholdActivation], any_of: bool
) -> Inserted:
    nodes = [n for n in traced.graph.nodes if n.op in ("call_module", "call_function", "call_method")]
    functions = {node.name: node for node in nodes if node.op != "call_module"}
    names = Names(names.modules, functions)  # other nodes are found by their own names
    sites: dict[fx.Node, None] = {}
    for entry in entries:
        match = _match(names, entry, any_of)
        hits = _calls_of(nodes, entry) if match is None else _matching_nodes(traced, nodes, match, names)
        if not hits and not any_of:
            raise _not_found(entry, [_name(n) for n in nodes if is_activation(traced, n)])
        sites.update(dict.fromkeys(hits))
    if not sites:
        raise _not_found(nn.ReLU, [_name(n) for n in nodes if is_activation(traced, n)])
    for node in sites:
        if not node.users:
            why = "it works in place, and the model goes on with what it was given"
            raise PlanError(
                "the result of an activation is not used",
                at=f'"{_name(node)}"',
                why=why,
                do="name an activation whose result is used, or write it without inplace=True",
            )
        if all(is_threshold(traced, user) for user in node.users):
            raise PlanError(
                "there is a threshold already",
                at=f'behind "{_name(node)}"',
                why="its result goes through a ThresholdActivation, and through nothing else",
                do="leave it out, or call remove_thresholds first",
            )
    layers = {}
    for node in sorted(sites, key=nodes.index):
        name = _unused_name(traced, f"{_name(node)}_threshold")
        traced.add_submodule(name, make(traced.training))
        with traced.graph.inserting_after(node):
            new = traced.graph.call_module(name, (node,))
        new.meta.update({key: value for key, value in node.meta.items() if key != "nn_module_stack"})
        _replace_uses(node, new)
        layers[name] = _name(node)
    traced.graph.lint()
    traced.recompile()
    return Inserted(traced, layers, "fx")


def _replace_uses(node: fx.Node, new: fx.Node) -> None:
    """Replaces a node by `new` for all its users except `new` itself."""

    def another(user: fx.Node) -> bool:
        return user is not new

    node.replace_all_uses_with(new, delete_user_cb=another)


def _name(node: fx.Node) -> str:
    """Returns the name of the module that a node calls, or of the node itself."""
    return str(node.target) if node.op == "call_module" else node.name


def _unused_name(root: nn.Module, wanted: str) -> str:
    taken = {name for name, _ in root.named_modules(remove_duplicate=False)}
    numbered = (f"{wanted}_{number}" for number in range(1, len(taken) + 2))
    return next(name for name in (wanted, *numbered) if name not in taken)


def _match(names: Names, entry: Any, any_of: bool) -> Match | None:
    """Returns the match of a pattern; None for a function, and with `any_of` for a type that the model lacks.

    any_of: True if the entries are alternatives (all spellings of a ReLU), so that each may be missing.
    """
    if isinstance(entry, type):
        absent = not any(isinstance(module, entry) for module in names.modules.values())
        return None if any_of and absent else find(names, entry, what="after")
    if isinstance(entry, (str, nn.Module)):
        return find(names, entry, what="after")
    if callable(entry):
        return None
    raise PlanError(
        f"after cannot be a {type(entry).__name__}", at=f"after={show(entry)}", why="it names no activation", do=_KINDS
    )


def _calls_of(nodes: list[fx.Node], function: Any) -> list[fx.Node]:
    """Returns the nodes that call a function or a method of tensors."""
    return [
        node
        for node in nodes
        if (node.op == "call_function" and node.target == function)
        or (node.op == "call_method" and getattr(torch.Tensor, str(node.target), None) == function)
    ]


def _matching_nodes(traced: fx.GraphModule, nodes: list[fx.Node], match: Match, names: Names) -> list[fx.Node]:
    """Returns the nodes that are named directly; else the activations that a glob matches or a named block holds."""
    activations = [node for node in nodes if is_activation(traced, node)]
    own = [
        node
        for node in (activations if match.level is Level.GLOB else nodes)
        if any(name in match.modules or name in match.tensors for name in names.spellings(_name(node)))
    ]
    if own and match.level is not Level.GLOB:
        return own
    return [node for node in activations if node in own or match.below(module_of(node))]


_KINDS = "pass a type of modules, a module, a function, the name of a module or node, a block, or a glob"


def _not_found(entry: Any, known: list[str]) -> PlanError:
    if isinstance(entry, str):
        return PlanError(
            f"after names no activation: {show(entry)}", at=f"after={show(entry)}", why=nearest(entry, known), do=_KINDS
        )
    if isinstance(entry, nn.Module):
        return PlanError(
            f"after holds a module that is never called: {type(entry).__name__}",
            at=f"after={type(entry).__name__}",
            why="it is no module of this model, or forward does not reach it",
            do="pass a module that forward calls, or a type",
        )
    listed = nearest("", known)
    return PlanError(
        f"the model does not call {getattr(entry, '__name__', entry)}",
        at=f"after={type(entry).__name__}",
        why=f"activations: {listed}",
        do="pass a module that forward calls, or a type",
    )


# -- without a graph ----------------------------------------------------------------------------


def _in_modules(
    copied: nn.Module,
    entries: list[Any],
    names: Names,
    make: Callable[[bool], ThresholdActivation],
    any_of: bool,
    why_not: str,
) -> Inserted:
    modules = {name: m for name, m in copied.named_modules(remove_duplicate=False) if name}
    known = [name for name, module in modules.items() if is_activation_module(module)]
    chosen: dict[str, nn.Module] = {}
    for entry in entries:
        match = _match(names, entry, any_of)
        if match is not None:
            hits = _matching_modules(match, modules, known)
        elif any_of:
            continue
        else:
            raise PlanError(
                f"calls of {getattr(entry, '__name__', entry)} cannot be found",
                at=f"after={getattr(entry, '__name__', entry)}",
                why=why_not or 'path="modules" looks at modules alone',
                do="name modules or types of modules, or trace the model yourself and pass the GraphModule",
            )
        if not hits and not any_of:
            raise _not_found(entry, known)
        chosen.update((name, modules[name]) for name in hits)
    if not chosen:
        raise _not_found(nn.ReLU, known)
    inside = [n for n in chosen for other in chosen if n.startswith(other + ".")]
    if inside:
        raise PlanError(
            "a module is meant together with one around it",
            at=f'"{inside[0]}"',
            why="a threshold would stand behind both",
            do="name one of them",
        )
    wrapped: dict[int, nn.Module] = {}
    layers = {}
    for name, module in chosen.items():
        if id(module) not in wrapped:
            wrapped[id(module)] = nn.Sequential(module, make(module.training)).train(module.training)
            layers[f"{name}.1"] = name
        parent, _, last = name.rpartition(".")
        copied.get_submodule(parent)._modules[last] = wrapped[id(module)]
    return Inserted(copied, layers, "modules", why_not)


def _matching_modules(match: Match, modules: Mapping[str, nn.Module], known: list[str]) -> list[str]:
    """Returns the names of matching modules; for a block or a glob, only the activations."""
    if match.level is Level.GLOB:
        return [name for name in known if match.below(name)]
    hits: dict[str, None] = {}
    for name in filter(None, match.modules):
        inside = [other for other in known if other.startswith(f"{name}.")] if modules[name]._modules else []
        hits.update(dict.fromkeys(inside or [name]))
    return list(hits)
