"""What a front end hands on: tensors by the names of the original, and a graph that says how they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.inputs import Inputs, bound

WHOLE = ""
"""The target of a `call_module` node that runs the whole model."""


@dataclass(frozen=True, eq=False)
class Captured:
    """A model as one of the front ends sees it.

    path: which one: "fx" and "export" make a graph of operations; "eager" and "hooks" keep the forward as it is, in a
        graph of one node.
    module: holds parameters and buffers by their original names; the `GraphModule` itself where there is one.
    graph: its nodes are run one by one, always on example inputs.
    values: example inputs as one value per placeholder.
    notes: what the reader of the record should know about this capture.
    real: whether the forward decides by numbers, so that it is run on real tensors and its sizes are not known before.
    """

    path: str
    module: nn.Module
    graph: fx.Graph
    values: Callable[[Inputs], list[Any]]
    notes: tuple[str, ...] = ()
    real: bool = False

    @property
    def whole(self) -> bool:
        """Whether the graph is the model as one node."""
        return self.path in ("eager", "hooks")

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Parameters, buffers, and the plain tensors in attributes that the forward may read, by dotted name.

        Tied ones appear under each of their names.
        """
        seen = set()
        for name, tensor in [
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        ]:
            seen.add(name)
            yield name, tensor
        for name, value in self._attributes():
            if name not in seen and isinstance(value, torch.Tensor):
                seen.add(name)
                yield name, value

    def _attributes(self) -> Iterator[tuple[str, Any]]:
        if not self.whole:
            for node in self.graph.find_nodes(op="get_attr"):
                yield str(node.target), fetch(self.module, str(node.target))
            return
        for path, module in self.module.named_modules():
            for name, value in module.__dict__.items():
                yield f"{path}.{name}" if path else name, value


def fetch(module: nn.Module, name: str) -> Any:
    """The attribute at a dotted path."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def whole(model: nn.Module, inputs: Inputs, path: str) -> Captured:
    """The model as one node: its own forward, whatever it is, with all that it calls.

    Raises `InputError` where the inputs do not fit the signature of forward.
    """
    bound(model, inputs)
    graph = fx.Graph()
    args = graph.placeholder("args")
    kwargs = graph.placeholder("kwargs")
    graph.output(graph.create_node("call_module", WHOLE, (args, kwargs), name="forward"))
    return Captured(path, model, graph, list, real=path == "hooks")
