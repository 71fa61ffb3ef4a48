"""A captured model: tensors by the names of the original, and a graph that says how they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.inputs import Inputs, for_graph
from fxprune.capture.tensors import Tensors

WHOLE_MODEL = ""
"""The target of a `call_module` node that runs the whole model."""

NOTES = "fxprune_notes"
"""In `meta` of a `GraphModule`: sentences on what the graph cannot do that the model could."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A model as one of the front ends sees it.

    front_end: the one that made it, which answers what the path means for the small model.
    module: holds parameters and buffers by their original names; the `GraphModule` itself where there is one.
    graph: its nodes are run one by one, always on example inputs.
    values: example inputs as one value per placeholder.
    notes: what the reader of the record should know about this capture.
    real: True where the forward decides by numbers: it runs on real tensors, and its sizes are not known before.
    """

    front_end: FrontEnd
    module: nn.Module
    graph: fx.Graph
    values: Callable[[Inputs], list[Any]]
    notes: tuple[str, ...] = ()
    real: bool = False

    @property
    def path(self) -> str:
        """The name of the path, as plans, records and reports say it."""
        return self.front_end.name

    @property
    def keeps_class(self) -> bool:
        """True if the small model is of the model's own class; its graph is then the model as one node."""
        return self.front_end.keeps_class

    @property
    def has_graph(self) -> bool:
        """True if the nodes of the graph are the calls of forward; the small model is then a `GraphModule`."""
        return not self.front_end.keeps_class

    @property
    def needs_hooks(self) -> bool:
        """True if hooks put the outputs of smaller layers back among zeros."""
        return self.front_end.needs_hooks

    @property
    def can_fold(self) -> bool:
        """True if constants can be folded: the sizes are known before, and no hook puts zeros in their place."""
        return not self.real and not self.needs_hooks

    @cached_property
    def tensors(self) -> Tensors:
        """Parameters, buffers, and the plain tensors in attributes that the forward may read."""
        constants = ((name, value) for name, value in self._attributes() if isinstance(value, torch.Tensor))
        return Tensors.of(self.module).with_constants(constants)

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        if self.has_graph:
            for node in self.graph.find_nodes(op="get_attr"):
                yield str(node.target), fetch(self.module, str(node.target))
            return
        for path, module in self.module.named_modules():
            for name, value in module.__dict__.items():
                yield f"{path}.{name}" if path else name, value


@dataclass(frozen=True, eq=False)
class FrontEnd:
    """A path as `fxprune/paths.py` lists it: how a model is captured on it, and what follows for the small model.

    name: of the path, as users, plans and records write it.
    capture: the model and example inputs -> the captured model. Raises `CaptureError` for a model that this front end
        cannot take, `InputError` for inputs that do not fit.
    keeps_class: the model's own forward runs, and the small model is of its class; else it is a `GraphModule`.
    needs_hooks: hooks put zeros back at inference; such a path is the last to be tried.
    takes_graphs: a `GraphModule` is taken as the graph that it is; the others begin with a module.
    fixes_mode: training or evaluation mode is written into the graph.
    without_inputs: the captured model for a plan that is carried out without an analysis; None where that cannot be.
    """

    name: str
    capture: Callable[[nn.Module, Inputs], Captured]
    keeps_class: bool = False
    needs_hooks: bool = False
    takes_graphs: bool = False
    fixes_mode: bool = False
    without_inputs: Callable[[nn.Module], Captured] | None = None


def captured_graph(front_end: FrontEnd, module: fx.GraphModule) -> Captured:
    """A `GraphModule` as a captured model."""
    return Captured(front_end, module, module.graph, partial(for_graph, module.graph), module.meta.get(NOTES, ()))


def fetch(module: nn.Module, name: str) -> Any:
    """The attribute at a dotted path."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value
