"""Thresholds behind the activations of a model that has none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.capture.traced import module_of, trace
from fxprune.errors import CaptureError, PlanError, nearest
from fxprune.names import Level, Match, Names, checked, entries_of, find, names_of, show
from fxprune.sparse.activations.layers import ThresholdActivation
from fxprune.sparse.activations.nodes import is_activation, is_activation_module, is_threshold

RELUS: tuple[Any, ...] = (
    *(nn.ReLU, nn.ReLU6, F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_),
)
"""Every spelling of a ReLU: thresholds are put behind these unless `where` says otherwise."""

_PATHS = ("fx", "modules")


@dataclass(frozen=True)
class Inserted:
    """A model with thresholds.

    layers: name of a `ThresholdActivation` in `model` -> the activation that it stands behind.
    path: "fx", a `GraphModule`; or "modules", the model's own class. why_not: why not "fx".
    """

    model: nn.Module
    layers: Mapping[str, str]
    path: str
    why_not: str = ""


def insert_thresholds(
    model: nn.Module, after: Any = None, *, threshold: Any, magnitude: bool = True, path: str | None = None
) -> Inserted:
    """A copy of a model, with a `ThresholdActivation` behind each of the activations that are meant.

    On the path "fx", the copy is traced symbolically, and every call gets a threshold of its own: also functions
    (`F.relu(x)`), methods (`x.relu()`), and every call of a module that is called several times. What a graph takes
    over from the mode, such as `F.dropout(x, training=self.training)`, is that of the mode which the model is in.
    Where tracing fails, "modules" puts an `nn.Sequential` of module and threshold in the place of each module; a
    module that is called several times has one threshold then, and functions cannot be reached.

    Args:
        model: only read.
        after: a pattern or several: see `fxprune.names`; also a function (`F.relu`, `torch.Tensor.relu`), and the
            name of a node of the graph. A block means the activations in it, a glob those that it fits. Each must be
            found. None takes every ReLU, however it is spelled.
        threshold, magnitude: see `ThresholdActivation`. A rule that learns is the same one for all and learns in each.
        path: take this path or raise.

    Raises `PlanError` for what is not in the model; on the path "modules", for functions; and for an activation
    in place whose result is not what the model goes on with. `CaptureError` where path="fx" cannot trace.

    >>> from fxprune.sparse.activations.thresholds import Quantile
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> made = insert_thresholds(net, threshold=Quantile(0.8))
    >>> made.layers, made.path
    ({'1_threshold': '1'}, 'fx')
    """
    make = _maker(checked(model), threshold, magnitude)
    if path is not None and path not in _PATHS:
        raise PlanError(f"unknown path {path!r}", do='use "fx" or "modules"')
    entries = list(RELUS) if after is None else entries_of(after)
    if not entries:
        raise PlanError("after names nothing", why="the list is empty")
    copied = copy.deepcopy(model)
    names = names_of(model, parameters=False)
    if path == "modules":
        return _in_modules(copied, entries, names, make, after is None, "")
    try:
        traced = trace(copied)
    except CaptureError as error:
        if path is not None:
            raise
        return _in_modules(copied, entries, names, make, after is None, _why(error))
    return _in_graph(traced, entries, names, make, after is None)


def _maker(model: nn.Module, threshold: Any, magnitude: bool) -> Callable[[bool], ThresholdActivation]:
    """A function that makes layers on the model's device; the first is made now, so that bad options are refused."""
    first = next(iter([*model.parameters(), *model.buffers()]), None)

    def make(training: bool) -> ThresholdActivation:
        layer = ThresholdActivation(threshold, magnitude=magnitude)
        return layer.train(training).to(None if first is None else first.device)

    make(True)
    return make


def _why(error: CaptureError) -> str:
    """The place that could not be traced and the reason, in one line."""
    return "; ".join(line.removeprefix("  why  ") for line in str(error).splitlines() if not line.startswith("  do "))


# -- in a graph -------------------------------------------------------------------------------------------


def _in_graph(
    traced: fx.GraphModule, entries: list[Any], names: Names, make: Callable[[bool], ThresholdActivation], any_of: bool
) -> Inserted:
    nodes = [n for n in traced.graph.nodes if n.op in ("call_module", "call_function", "call_method")]
    functions = {node.name: node for node in nodes if node.op != "call_module"}
    names = Names(names.modules, functions)  # a node that calls no module has a name of its own
    sites: dict[fx.Node, None] = {}
    for entry in entries:
        match = _match(names, entry, any_of)
        hits = _calling(nodes, entry) if match is None else _meant(traced, nodes, match, names)
        if not hits and not any_of:
            raise _not_found(entry, [_name(n) for n in nodes if is_activation(traced, n)])
        sites.update(dict.fromkeys(hits))
    if not sites:
        raise _not_found(nn.ReLU, [_name(n) for n in nodes if is_activation(traced, n)])
    for node in sites:
        if not node.users:
            why = "it works in place, and the model goes on with what it was given"
            raise PlanError("the result of an activation is not used", at=f'"{_name(node)}"', why=why)
        if all(is_threshold(traced, user) for user in node.users):
            raise PlanError("there is a threshold already", at=f'behind "{_name(node)}"')
    layers = {}
    for node in sorted(sites, key=nodes.index):
        name = _free(traced, f"{_name(node)}_threshold")
        traced.add_submodule(name, make(traced.training))
        with traced.graph.inserting_after(node):
            new = traced.graph.call_module(name, (node,))
        new.meta.update({key: value for key, value in node.meta.items() if key != "nn_module_stack"})
        _reroute(node, new)
        layers[name] = _name(node)
    traced.graph.lint()
    traced.recompile()
    return Inserted(traced, layers, "fx")


def _reroute(node: fx.Node, new: fx.Node) -> None:
    """Let everything but `new` itself use `new` instead of a node."""

    def another(user: fx.Node) -> bool:
        return user is not new

    node.replace_all_uses_with(new, delete_user_cb=another)


def _name(node: fx.Node) -> str:
    """The module that a node calls, or the node itself."""
    return str(node.target) if node.op == "call_module" else node.name


def _free(root: nn.Module, wanted: str) -> str:
    taken = {name for name, _ in root.named_modules(remove_duplicate=False)}
    numbered = (f"{wanted}_{number}" for number in range(1, len(taken) + 2))
    return next(name for name in (wanted, *numbered) if name not in taken)


def _match(names: Names, entry: Any, any_of: bool) -> Match | None:
    """The modules that a pattern names; None for a function, and for a type that need not be there."""
    if isinstance(entry, type):
        absent = not any(isinstance(module, entry) for module in names.modules.values())
        return None if any_of and absent else find(names, entry, what="after")
    if isinstance(entry, (str, nn.Module)):
        return find(names, entry, what="after")
    if callable(entry):
        return None
    raise PlanError(f"after cannot be a {type(entry).__name__}", do=_KINDS)


def _calling(nodes: list[fx.Node], function: Any) -> list[fx.Node]:
    """The nodes that call a function, or the method of a tensor."""
    return [
        node
        for node in nodes
        if (node.op == "call_function" and node.target == function)
        or (node.op == "call_method" and getattr(torch.Tensor, str(node.target), None) == function)
    ]


def _meant(traced: fx.GraphModule, nodes: list[fx.Node], match: Match, names: Names) -> list[fx.Node]:
    """The nodes that are named themselves; else the activations that a glob fits, or that stand in a named block."""
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
        return PlanError(f"after names no activation: {show(entry)}", why=nearest(entry, known), do=_KINDS)
    if isinstance(entry, nn.Module):
        return PlanError(f"after holds a module that is never called: {type(entry).__name__}")
    listed = nearest("", known)
    return PlanError(f"the model does not call {getattr(entry, '__name__', entry)}", why=f"activations: {listed}")


# -- where no graph can be had ----------------------------------------------------------------------------


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
            hits = _named(match, modules, known)
        elif any_of:
            continue
        else:
            raise PlanError(
                f"calls of {getattr(entry, '__name__', entry)} cannot be found",
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
        raise PlanError("a module is meant together with one around it", at=f'"{inside[0]}"', do="name one of them")
    wrapped: dict[int, nn.Module] = {}
    layers = {}
    for name, module in chosen.items():
        if id(module) not in wrapped:
            wrapped[id(module)] = nn.Sequential(module, make(module.training)).train(module.training)
            layers[f"{name}.1"] = name
        parent, _, last = name.rpartition(".")
        copied.get_submodule(parent)._modules[last] = wrapped[id(module)]
    return Inserted(copied, layers, "modules", why_not)


def _named(match: Match, modules: Mapping[str, nn.Module], known: list[str]) -> list[str]:
    """The modules that a pattern names: of a block its activations, of a glob the activations that it fits."""
    if match.level is Level.GLOB:
        return [name for name in known if match.below(name)]
    hits: dict[str, None] = {}
    for name in filter(None, match.modules):
        inside = [other for other in known if other.startswith(f"{name}.")] if modules[name]._modules else []
        hits.update(dict.fromkeys(inside or [name]))
    return list(hits)
