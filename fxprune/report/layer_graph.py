"""The graph of layers, whatever code is between them: one forward keeps for every tensor the layers it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.captured import Captured
from fxprune.capture.fake_operations import run
from fxprune.capture.fake_tensors import Faker, Real
from fxprune.capture.inputs import Inputs, bound
from fxprune.capture.places import module_of
from fxprune.capture.scopes import Scopes
from fxprune.capture.values import tensors_in
from fxprune.capture.walk import walk
from fxprune.report.data import Shape

_NOWHERE: frozenset[str] = frozenset()


@dataclass
class LayerGraph:
    """The nodes of one forward in the order in which they ran, and edges with the shape of the tensor between them.

    nodes: name -> what it is: "layer" (a module by its path), "parameter" (by its name: one that no layer owns), "join"
        (an operation at which branches meet, "module:operation"), "input" ("input:argument") or "output".
    """

    nodes: dict[str, str] = field(default_factory=dict)
    edges: dict[tuple[str, str], Shape] = field(default_factory=dict)


def trace_layers(model: nn.Module, captured: Captured, inputs: Inputs) -> LayerGraph:
    """The layers of one forward and the tensors between them; on fake tensors unless the forward decides by numbers."""
    faker = Real() if captured.real else Faker()
    module = faker.module(captured.module)
    tracker = _Tracker(Scopes(module), module, dict(_named(model, inputs, faker)))

    def visit(node: fx.Node, execute: Callable[[], Any]) -> Any:
        tracker.module = module_of(node)
        tracker.scopes.node(node.name)
        return execute()

    modes = (tracker.scopes.watching(), tracker)
    results = walk(captured.graph, module, faker, captured.values(inputs), visit, modes)
    for tensor in tensors_in(results):
        tracker.connect("output", "output", [tensor])
    return tracker.graph


def _named(model: nn.Module, inputs: Inputs, faker: Faker | Real) -> Iterator[tuple[int, str]]:
    """The id of every (fake) tensor of the inputs, and the name of the argument that holds it."""
    for name, value in bound(model, inputs).arguments.items():
        for number, tensor in enumerate(tensors_in(value)):
            yield id(faker.tensor(tensor)), f"input:{name}" if not number else f"input:{name}.{number}"


class _Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The dispatch mode that notes for every tensor the last nodes that it comes from, and adds edges from them."""

    def __init__(self, scopes: Scopes, module: nn.Module, inputs: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scopes, self.module, self.graph = scopes, "", LayerGraph()
        self._layers = set(_layers(module))
        self._raw: set[str] = set()
        self._owner = {id(t): self._owner_of(module, name) for name, t in module.named_parameters()}
        self._inputs = inputs
        self._from: dict[int, tuple[int, frozenset[str]]] = {}
        self._written: dict[int, tuple[int, frozenset[str]]] = {}  # by storage, for what is written into a view
        self._alive: list[Any] = []
        self._joins: Counter[str] = Counter()

    def _owner_of(self, module: nn.Module, name: str) -> str:
        """The node that a parameter belongs to: its layer; itself in a module that has layers inside."""
        path = name.rpartition(".")[0]
        kind = type(module.get_submodule(path))
        if path in self._layers or (path and kind is not nn.Module and kind.__module__.startswith("torch.nn.")):
            return path
        self._raw.add(name)
        return name

    def sources(self, tensor: torch.Tensor) -> frozenset[str]:
        """The nodes that a tensor comes from."""
        if id(tensor) in self._inputs:
            return frozenset({self._inputs[id(tensor)]})
        known = self._from.get(id(tensor), (-1, _NOWHERE))
        if self._written:
            known = max(known, self._written.get(tensor.untyped_storage()._cdata, known), key=lambda found: found[0])
        return known[1]

    def connect(self, node: str, kind: str, tensors: Iterable[torch.Tensor]) -> None:
        """Add edges to this node from all nodes that these tensors come from."""
        for tensor in tensors:
            for source in sorted(self.sources(tensor) - {node}):
                self.graph.nodes.setdefault(source, "input")  # anything else is there already
                self.graph.edges.setdefault((source, node), tuple(tensor.shape))
        self.graph.nodes.setdefault(node, kind)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = run(func, args, kwargs or {})
        entering = tensors_in([list(args), kwargs or {}])
        owners = dict.fromkeys(self._owner[id(t)] for t in entering if id(t) in self._owner)
        data = [t for t in entering if id(t) not in self._owner]
        origin = _NOWHERE.union(*(self.sources(t) for t in data))
        outputs = tensors_in(made)
        self._alive += [entering, outputs]  # kept alive, so that no other tensor gets the same id
        layer = next((scope.path for scope in reversed(self.scopes.stack) if scope.path in self._layers), None)
        if layer is None and owners and not origin and len(owners) == 1:
            self._owner.update((id(t), next(iter(owners))) for t in outputs)  # a parameter in another shape
            return made
        if layer is not None or owners:
            node = next(iter(owners)) if layer is None else layer
            self.connect(node, self._kind(node), data)
            for other in owners:
                if other != node and layer is None:
                    self.graph.nodes.setdefault(other, self._kind(other))
                    self.graph.edges.setdefault((other, node), ())
            origin = frozenset({node})
        elif len(origin) > 1:
            node = self._join(func)
            self.connect(node, "join", data)
            origin = frozenset({node})
        self._leave(func, args, outputs, origin)
        return made

    def _leave(self, func: Any, args: Any, outputs: list[torch.Tensor], origin: frozenset[str]) -> None:
        now = len(self._alive)
        for tensor in outputs:
            self._inputs.pop(id(tensor), None)  # written into
            self._from[id(tensor)] = now, origin
            if func._schema.is_mutable:
                self._written[tensor.untyped_storage()._cdata] = now, origin

    def _kind(self, node: str) -> str:
        return "parameter" if node in self._raw else "layer"

    def _join(self, func: Any) -> str:
        scope, operation = self.scopes.current, func._schema.name.partition("::")[2].strip("_")
        name = f"{self.module if scope.module is None else scope.path}:{operation}"
        self._joins[name] += 1
        return name if self._joins[name] == 1 else f"{name} {self._joins[name]}"


def _layers(module: nn.Module) -> Iterator[str]:
    """The modules that own parameters and hold no module that owns some."""
    owning = {path for path, m in module.named_modules() if any(True for _ in m.parameters(recurse=False))}
    for path in owning:
        if path and not any(other.startswith(f"{path}.") for other in owning):
            yield path
