"""Running a graph node by node on fake tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.fake import Faker
from fxprune.capture.trace import module_of, source_of
from fxprune.errors import CaptureError, FxpruneError


def named_tensors(graph_module: fx.GraphModule) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers, and the plain tensor attributes that the graph reads, by dotted name, twins included."""
    seen = set()
    for name, tensor in [
        *graph_module.named_parameters(remove_duplicate=False),
        *graph_module.named_buffers(remove_duplicate=False),
    ]:
        seen.add(name)
        yield name, tensor
    for node in graph_module.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        value = fetch(graph_module, name)
        if name not in seen and isinstance(value, torch.Tensor):
            seen.add(name)
            yield name, value


def fetch(module: nn.Module, name: str) -> Any:
    """The attribute at a dotted path."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


class _Walk(fx.Interpreter):
    def __init__(self, graph: fx.Graph, module: nn.Module, visit: Callable[[fx.Node, Callable[[], Any]], Any]) -> None:
        super().__init__(module, graph=graph)
        self.visit = visit
        self.node: fx.Node | None = None
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return self.visit(n, lambda: super(_Walk, self).run_node(n))


def walk_on_fakes(
    graph: fx.Graph,
    module: nn.Module,
    faker: Faker,
    values: list[Any],
    visit: Callable[[fx.Node, Callable[[], Any]], Any],
    mode: Any = None,
) -> Any:
    """Run a graph node by node on fake tensors: `visit(node, execute)` for each, in order.

    Raises `CaptureError` with node, module and source line where the forward raises.
    """
    walk = _Walk(graph, module, visit)
    fakes = faker.tree(values)
    try:
        with torch.no_grad(), faker.mode:
            if mode is None:
                return walk.run(*fakes)
            with mode:
                return walk.run(*fakes)
    except FxpruneError:
        raise
    except Exception as error:
        node = walk.node
        where = f"{module_of(node) or 'the model'} ({source_of(node)}), node %{node.name}" if node else "the model"
        raise CaptureError(
            "the model's forward raises on fake tensors",
            at=where,
            why=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}",
            do="check that the model runs on these example inputs",
        ) from error
