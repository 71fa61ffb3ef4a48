"""A captured model: the original's tensors by name, and the graph of its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.inputs import Inputs, for_graph
from fxprune.capture.tensors import Tensors, constants_of

WHOLE_MODEL = ""
"""The target of a `call_module` node that runs the whole model."""

NOTES = "fxprune_notes"
"""Key in `meta` of a `GraphModule`: a tuple of sentences about what the model could do and the graph cannot."""

FIXED = "fxprune_fixed_sizes"
"""Key in `meta` of a `GraphModule`: a tuple of sentences about sizes that the model takes and the graph does not."""

LOST = "fxprune_lost"
"""Key in `meta` of a `GraphModule`: the sentences of `NOTES` about what the graph does otherwise than the model."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A model as a front end has captured it. The model itself is not changed.

    front_end: the front end that made it.
    module: holds the parameters and buffers by their original names. It is the `GraphModule` if there is one, else the
        model.
    graph: the nodes that the analysis runs one by one.
    values: a function from example inputs to one value per placeholder of the graph: see `arguments`.
    notes: sentences about this capture for the reader of the record.
    real: True if the forward depends on the numbers in its tensors. Then it runs on real tensors instead of fake ones,
        and the sizes in the small model cannot be proven beforehand.
    fixed: sentences about the sizes of inputs that the model takes and the graph does not.
    lost: those of `notes` about what the graph does otherwise than the model: state, and backwards of its own.
    """

    front_end: FrontEnd
    module: nn.Module
    graph: fx.Graph
    values: Callable[[Inputs], list[Any]]
    notes: tuple[str, ...] = ()
    real: bool = False
    fixed: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def arguments(self, inputs: Inputs, method: str = "") -> list[Any]:
        """One value per placeholder of the graph. method: what to call instead of forward, where the class is kept."""
        return [*self.values(inputs)[:2], method] if self.keeps_class else self.values(inputs)

    @property
    def path(self) -> str:
        """The name of the path, as in plans, records and reports."""
        return self.front_end.name

    @property
    def keeps_class(self) -> bool:
        """True if the small model has the model's own class. Its graph then runs the whole model in one node."""
        return self.front_end.keeps_class

    @property
    def has_graph(self) -> bool:
        """True if the graph has a node for each call in forward. The small model is then a `GraphModule`."""
        return not self.front_end.keeps_class

    @property
    def needs_hooks(self) -> bool:
        """True if hooks of the small model fill up the outputs of its smaller layers with zeros."""
        return self.front_end.needs_hooks

    @property
    def can_fold(self) -> bool:
        """True if constants can be folded: sizes are known beforehand, and no hook fills up with zeros."""
        return not self.real and not self.needs_hooks

    @cached_property
    def tensors(self) -> Tensors:
        """All parameters and buffers, and the plain tensors in attributes that the forward may read."""
        own = {id(found.tensor) for found in self.registered.unique}
        held = ((name, tensor) for name, tensor in constants_of(self.module) if id(tensor) not in own)
        return self.registered.with_constants([*self._read_by_graph(), *held])

    @cached_property
    def registered(self) -> Tensors:
        """All parameters and buffers."""
        return Tensors.of(self.module)

    def _read_by_graph(self) -> Iterator[tuple[str, torch.Tensor]]:
        for node in self.graph.find_nodes(op="get_attr") if self.has_graph else ():
            value = fetch(self.module, str(node.target))
            if isinstance(value, torch.Tensor):
                yield str(node.target), value


@dataclass(frozen=True, eq=False)
class FrontEnd:
    """One path of `fxprune/paths.py`: how it captures a model, and what kind of small model it gives.

    name: the name of the path, as users, plans and records write it.
    capture: a function from the model and example inputs to the captured model. Raises `CaptureError` if this front end
        cannot capture the model, `InputError` for inputs that do not fit.
    keeps_class: True if the small model has the model's class and runs its forward; False if it is a `GraphModule`.
    needs_hooks: True if the small model fills up outputs with zeros by hooks. Such a path is tried last.
    takes_graphs: True if the path accepts a `GraphModule` as the graph that it is.
    fixes_mode: True if training or evaluation mode is written into the graph.
    without_inputs: a function that captures a model without running it, to apply a plan without an analysis; None if
        this path cannot do so.
    """

    name: str
    capture: Callable[[nn.Module, Inputs], Captured]
    keeps_class: bool = False
    needs_hooks: bool = False
    takes_graphs: bool = False
    fixes_mode: bool = False
    without_inputs: Callable[[nn.Module], Captured] | None = None


def captured_graph(
    front_end: FrontEnd, module: fx.GraphModule, fixed: tuple[str, ...] = (), lost: tuple[str, ...] = ()
) -> Captured:
    """A `GraphModule` as a captured model. fixed, lost: see `Captured`."""
    values, notes = partial(for_graph, module.graph), tuple(module.meta.get(NOTES, ()))
    return Captured(front_end, module, module.graph, values, (*notes, *fixed), fixed=fixed, lost=lost)


def fetch(module: nn.Module, name: str) -> Any:
    """The attribute at a dotted path."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value
