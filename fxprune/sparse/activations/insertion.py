"""Thresholds behind the activations of a model that has none."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fxprune.capture.traced import trace
from fxprune.errors import CaptureError, PlanError, nearest
from fxprune.sparse.activations.layers import ThresholdActivation
from fxprune.sparse.activations.nodes import is_activation, is_activation_module, is_threshold
from fxprune.sparse.freezing.select import checked, entries_of

RELUS: tuple[Any, ...] = (
    *(nn.ReLU, nn.ReLU6, F.relu, F.relu_, F.relu6, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_),
)
"""Every spelling of a ReLU: what thresholds are put behind where nobody says another thing."""


Names = dict[int, list[str]]
"""The names of every module of the original, by its id."""


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
        after: one of, or a list of: a type of modules, a module, a function (`F.relu`, `torch.Tensor.relu`), the name
            of a module or of a node of the graph, a glob over the names of activations. Each must be found. None
            takes every ReLU, however it is spelled.
        threshold, magnitude: see `ThresholdActivation`. A rule that learns is the same one for all and learns in each.
        path: take this way or raise.

    Raises `PlanError` for what is not in the model; on the path "modules", for functions; and for an activation
    in place whose result is not what the model goes on with. `CaptureError` where path="fx" cannot trace.

    >>> from fxprune.sparse.activations.thresholds import Quantile
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> made = insert_thresholds(net, threshold=Quantile(0.8))
    >>> made.layers, made.path
    ({'1_threshold': '1'}, 'fx')
    """
    make = _maker(checked(model), threshold, magnitude)
    if path not in (None, "fx", "modules"):
        raise PlanError(f"unknown path {path!r}", do='use "fx" or "modules"')
    entries = list(RELUS) if after is None else entries_of(after)
    if not entries:
        raise PlanError("after names nothing", why="the list is empty")
    copied = copy.deepcopy(model)
    names: Names = {id(module): [] for module in model.modules()}
    for name, module in model.named_modules(remove_duplicate=False):
        names[id(module)].append(name)
    for entry in entries:
        if isinstance(entry, nn.Module) and id(entry) not in names:
            raise PlanError(f"after holds a module that is not part of the model: {type(entry).__name__}")
    if path == "modules":
        return _in_modules(copied, entries, names, make, after is None, "")
    try:
        traced = trace(copied)
    except CaptureError as error:
        if path == "fx":
            raise
        return _in_modules(copied, entries, names, make, after is None, _why(error))
    return _in_graph(traced, entries, names, make, after is None)


def _maker(model: nn.Module, threshold: Any, magnitude: bool) -> Callable[[bool], ThresholdActivation]:
    """What makes the layers, on the model's device; the first one is made now, to refuse what cannot be made."""
    first = next(iter([*model.parameters(), *model.buffers()]), None)

    def make(training: bool) -> ThresholdActivation:
        layer = ThresholdActivation(threshold, magnitude=magnitude)
        return layer.train(training).to(None if first is None else first.device)

    make(True)
    return make


def _why(error: CaptureError) -> str:
    """What could not be traced and the reason, in one line."""
    return "; ".join(line.removeprefix("  why  ") for line in str(error).splitlines() if not line.startswith("  do "))


# -- in a graph -------------------------------------------------------------------------------------------


def _in_graph(
    traced: fx.GraphModule, entries: list[Any], names: Names, make: Callable[[bool], ThresholdActivation], any_of: bool
) -> Inserted:
    nodes = [n for n in traced.graph.nodes if n.op in ("call_module", "call_function", "call_method")]
    sites: dict[fx.Node, None] = {}
    for entry in entries:
        hits = [node for node in nodes if _meant(traced, node, entry, names)]
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


def _meant(traced: fx.GraphModule, node: fx.Node, entry: Any, names: Names) -> bool:
    if isinstance(entry, str):
        return _name(node) == entry or (is_activation(traced, node) and fnmatch.fnmatchcase(_name(node), entry))
    if isinstance(entry, nn.Module):
        return node.op == "call_module" and node.target in names[id(entry)]
    if isinstance(entry, type):
        return node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), entry)
    if callable(entry):
        return (node.op == "call_function" and node.target == entry) or (
            node.op == "call_method" and getattr(torch.Tensor, str(node.target), None) == entry
        )
    raise PlanError(f"after cannot be a {type(entry).__name__}", do=_KINDS)


_KINDS = "pass a type of modules, a module, a function, the name of a module or node, or a glob over activations"


def _not_found(entry: Any, known: list[str]) -> PlanError:
    if isinstance(entry, str):
        return PlanError(f'after names no activation of the model: "{entry}"', why=nearest(entry, known), do=_KINDS)
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
        if isinstance(entry, str):
            hits = [entry] if entry in modules else [name for name in known if fnmatch.fnmatchcase(name, entry)]
        elif isinstance(entry, nn.Module):
            hits = [name for name in names[id(entry)] if name]
        elif isinstance(entry, type):
            hits = [name for name, module in modules.items() if isinstance(module, entry)]
        elif callable(entry):
            if not any_of:
                raise PlanError(
                    f"calls of {getattr(entry, '__name__', entry)} cannot be found",
                    why=why_not or 'path="modules" looks at modules alone',
                    do="name modules or types of modules, or trace the model yourself and pass the GraphModule",
                )
            continue
        else:
            raise PlanError(f"after cannot be a {type(entry).__name__}", do=_KINDS)
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
