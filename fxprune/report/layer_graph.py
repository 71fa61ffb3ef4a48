"""The graph of layers, whatever code is between them, from the operations that the analysis has seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.steps import Step
from fxprune.capture.inputs import bound
from fxprune.capture.scopes import Scope
from fxprune.capture.tensors import PARAMETER
from fxprune.capture.values import tensors_in
from fxprune.ops.factors import Value
from fxprune.report.data import Shape

KINDS = ("layer", "parameter", "join", "input", "output")
"""The kinds of nodes."""

_NOWHERE: frozenset[str] = frozenset()


@dataclass
class LayerGraph:
    """The nodes of one forward in the order in which they ran, and edges with the shape of the tensor between them.

    nodes: name -> what it is: "layer" (a module by its path), "parameter" (by its name: one that no layer owns), "join"
        (an operation at which branches meet, "module:operation"), "input" ("input:argument") or "output".
    outputs: layer -> the shapes of the tensors that other code reads from it; several for several results or calls.
    """

    nodes: dict[str, str] = field(default_factory=dict)
    edges: dict[tuple[str, str], Shape] = field(default_factory=dict)
    outputs: dict[str, set[Shape]] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerFlow:
    """The layers of the original and what runs before what, as a record keeps it.

    nodes: as in `LayerGraph`. edges: pairs of positions in the nodes. classes: path of each module that holds a node,
        and "" for the model -> the name of its class.
    """

    nodes: Mapping[str, str]
    edges: tuple[tuple[int, int], ...]
    classes: Mapping[str, str]


def flow_of(findings: Findings) -> LayerFlow:
    """The flow of the model that was analysed."""
    found = layer_graph(findings)
    number = {node: position for position, node in enumerate(found.nodes)}
    edges = tuple((number[before], number[after]) for before, after in found.edges)
    return LayerFlow(found.nodes, edges, classes_around(findings.model, found.nodes))


def with_layers(flow: LayerFlow, model: nn.Module, paths: Iterable[str]) -> LayerFlow:
    """The flow with further layers of a model, which ran in no forward that was seen: nodes without edges.

    Each stands behind the layers that the model has before it.
    """
    order = {path: position for position, (path, _) in enumerate(model.named_modules(remove_duplicate=False))}
    nodes = list(flow.nodes)
    for path in sorted({*paths} & order.keys() - flow.nodes.keys(), key=order.__getitem__):
        before = [at for at, node in enumerate(nodes) if 0 < order.get(node.partition(":")[0], 0) < order[path]]
        nodes.insert(max(before, default=-1) + 1, path)
    number, old = {node: position for position, node in enumerate(nodes)}, list(flow.nodes)
    edges = tuple((number[old[first]], number[old[second]]) for first, second in flow.edges)
    kinds = {node: flow.nodes.get(node, "layer") for node in nodes}
    return LayerFlow(kinds, edges, {**flow.classes, **classes_around(model, nodes)})


def classes_around(model: nn.Module, nodes: Iterable[str]) -> dict[str, str]:
    """Path of every module that holds a node, and "" for the model -> the name of its class."""
    used = {""}
    for node in nodes:
        path = node.partition(":")[0]
        while path not in used:
            used.add(path)
            path = path.rpartition(".")[0]
    return {path: type(m).__name__ for path, m in model.named_modules(remove_duplicate=False) if path in used}


def layer_graph(findings: Findings) -> LayerGraph:
    """The layers of the forward on the first example inputs, and the tensors between them."""
    builder = _Builder(findings)
    main = findings.observed.steps.main
    for step in main.done:
        builder.add(step)
    for value in main.results:
        builder.note_read(value, None)
        builder.connect("output", "output", [value])
    return builder.graph


class _Builder:
    """Notes for every tensor the last nodes that it comes from, and adds edges from them."""

    def __init__(self, findings: Findings) -> None:
        self.graph = LayerGraph()
        self._events = findings.events
        self._module = findings.captured.module
        self._layers = _layers(self._module)
        known = (one for one in findings.captured.tensors.unique if one.kind == PARAMETER)
        self._parameters = {name for one in known for name in (one.name, *one.others)}
        self._raw: set[str] = set()
        self._owner: dict[Value, str] = {}
        self._from: dict[Value, frozenset[str]] = dict(_inputs(findings))
        self._joins: Counter[str] = Counter()
        self._maker: dict[Value, Scope] = {}

    def add(self, step: Step) -> None:
        """Add an operation: to its layer, as a join of branches, or to the way from one layer to the next."""
        if step.scope is None:  # what was written last is what is read
            known = [self._from[value] for value in step.read if self._from.get(value)]
            self._from.update((value, known[-1] if known else _NOWHERE) for value in step.made)
            return
        owned = [(value, self._owner_of(value)) for value in step.read]
        owners = dict.fromkeys(owner for _, owner in owned if owner is not None)
        data = [value for value, owner in owned if owner is None]
        origin = _NOWHERE.union(*(self._from.get(value, _NOWHERE) for value in data))
        running = self._running(step.scope)
        layer = None if running is None else running.path
        for value in step.read:
            self.note_read(value, running)
        if running is not None:
            self._maker.update((value, running) for value in step.made)
        if layer is None and len(owners) == 1 and not origin:
            self._owner.update((value, next(iter(owners))) for value in step.made)  # a parameter in another shape
            return
        if layer is not None:
            self.connect(layer, "layer", data)
            origin = frozenset({layer})
        elif owners:
            origin = frozenset({self._meeting(step, step.scope, owned, data)})
        elif len(origin) > 1:
            node = self._join(step, step.scope)
            self.connect(node, "join", data)
            origin = frozenset({node})
        self._from.update((value, origin) for value in step.made)

    def note_read(self, value: Value, reader: Scope | None) -> None:
        """Note an output of a layer, if this tensor was made in another call than the one that reads it."""
        maker = self._maker.get(value)
        if maker is not None and maker is not reader:
            self.graph.outputs.setdefault(maker.path, set()).add(value.shape)

    def _meeting(
        self, step: Step, scope: Scope, owned: Iterable[tuple[Value, str | None]], data: Iterable[Value]
    ) -> str:
        """Add an operation between the layers that reads parameters; returns its node.

        It belongs to the first layer whose parameter it reads. A parameter that no layer owns is an input of it like
        data: both meet in a join.
        """
        shapes = {owner: value.shape for value, owner in owned if owner is not None}
        node = next((owner for owner in shapes if owner not in self._raw), None)
        for other in shapes:
            self.graph.nodes.setdefault(other, self._kind(other))
        if node is None:
            node = self._join(step, scope)
        self.connect(node, self.graph.nodes.get(node, "join"), data)
        for other in (name for name in shapes if name != node):
            self.graph.edges.setdefault((other, node), shapes[other])
        return node

    def connect(self, node: str, kind: str, values: Iterable[Value]) -> None:
        """Add edges to this node from all nodes that these tensors come from."""
        for value in values:
            for source in sorted(self._from.get(value, _NOWHERE)):
                if source != node:
                    self.graph.nodes.setdefault(source, "input")  # anything else is there already
                    self.graph.edges.setdefault((source, node), value.shape)
        self.graph.nodes.setdefault(node, kind)

    def _owner_of(self, value: Value) -> str | None:
        """The node that a parameter belongs to: its layer; itself in a module that has layers inside. None for data."""
        known = self._owner.get(value)
        if known is not None or value.name not in self._parameters:
            return known
        name = str(value.name)
        path = name.rpartition(".")[0]
        kind = type(self._module.get_submodule(path))
        if path in self._layers or (path and kind is not nn.Module and kind.__module__.startswith("torch.nn.")):
            self._owner[value] = path
        else:
            self._raw.add(name)
            self._owner[value] = name
        return self._owner[value]

    def _running(self, scope: Scope | None) -> Scope | None:
        """The call of the innermost layer that is running."""
        while scope is not None and scope.path not in self._layers:
            scope = scope.outer
        while scope is not None and scope.outer is not None and scope.outer.path == scope.path:
            scope = scope.outer  # around a function such as einsum
        return scope

    def _kind(self, node: str) -> str:
        return "parameter" if node in self._raw else "layer"

    def _join(self, step: Step, scope: Scope) -> str:
        operation = (step.name or step.key[2]).rpartition("::")[2].strip("_")
        name = f"{self._events[step.event].module if scope.module is None else scope.path}:{operation}"
        self._joins[name] += 1
        return name if self._joins[name] == 1 else f"{name} {self._joins[name]}"


def _inputs(findings: Findings) -> Iterator[tuple[Value, frozenset[str]]]:
    """The tensors of the inputs, each with the name of the argument that holds it."""
    arguments = bound(findings.model, findings.inputs).arguments
    names = [
        f"input:{name}" if not number else f"input:{name}.{number}"
        for name, value in arguments.items()
        for number, _ in enumerate(tensors_in(value))
    ]
    given = findings.observed.steps.main.given
    if len(names) != len(given):
        names = [f"input:{number}" for number in range(len(given))]
    for value, name in zip(given, names, strict=True):
        yield value, frozenset({name})


def _layers(module: nn.Module) -> frozenset[str]:
    """The modules that own parameters and hold no module that owns some."""
    owning = {path for path, m in module.named_modules() if any(True for _ in m.parameters(recurse=False))}
    around = {path[:at] for path in owning for at, letter in enumerate(path) if letter == "."}
    return frozenset(owning - around - {""})
