"""Runs of a model that add up its activations, and the nodes of the graph at which they are recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fxprune.capture.inputs import Inputs, for_placeholders
from fxprune.capture.traced import traced_graph
from fxprune.errors import CaptureError, PlanError
from fxprune.running.activation_nodes import is_activation, is_norm, is_threshold, keeps_channels

CONVOLUTIONS: Mapping[type[nn.Module], int] = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}
"""Type of convolution -> the number of its dimensions of space."""

Shapes = Mapping[fx.Node, tuple[int, ...]]


@dataclass(frozen=True)
class RecordedLayer:
    """The point at which the activations of a layer are recorded.

    at: the module that the node calls, or the name of the node. dim: the dimension of the channels, None if unknown.
    """

    layer: str
    at: str
    dim: int | None


@dataclass
class Sums:
    """Running sums of one layer.

    sums: name -> one number per channel: "zeros", "magnitudes", "values", "squares"; with `ranks` also "ranks", the sum
    of the ranks of its maps. count: the values per channel. maps: the maps per channel. calls: the number of calls.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    maps: int = 0
    calls: int = 0

    def add(self, layer: str, made: Tensor, dim: int, threshold: float, *, ranks: bool = False) -> None:
        """Adds the activations of one call. Raises `PlanError` if the number of channels has changed."""
        made = made.detach()
        if made.ndim < 2:
            made, dim = made.reshape(1, -1), 1
        others = [d for d in range(made.ndim) if d != dim % made.ndim]
        size = made.abs()
        dtype = torch.float32 if made.device.type == "mps" else torch.float64
        wide = made.to(torch.promote_types(made.dtype, dtype) if made.is_complex() else dtype)
        found = {
            "zeros": (size <= threshold).sum(others, dtype=dtype),
            "magnitudes": size.sum(others, dtype=dtype),
            "values": wide.sum(others),
            "squares": size.to(dtype).square().sum(others),
        }
        if ranks and made.ndim == 4 and dim % 4 == 1:
            found["ranks"] = torch.linalg.matrix_rank(made.float().nan_to_num(0.0, 0.0, 0.0)).sum(0, dtype=dtype)
            self.maps += len(made)
        for name, sums in found.items():
            before = self.sums.get(name)
            if before is not None and len(before) != len(sums):
                raise PlanError(
                    f'"{layer}" is called with {len(before)} and with {len(sums)} channels',
                    why="they cannot be added up channel by channel",
                    do="name the convolutions or linear layers before it instead",
                )
            self.sums[name] = sums if before is None else before + sums
        self.count += made.numel() // max(len(found["zeros"]), 1)
        self.calls += 1


class Recorder:
    """Runs a model on batches, as a graph if it can be traced, and adds up the activations of its layers."""

    def __init__(
        self,
        model: nn.Module,
        layers: list[str],
        threshold: float,
        through: bool,
        channel_dim: int | None,
        *,
        ranks: bool = False,
    ) -> None:
        self.model, self.layers, self.threshold = model, layers, threshold
        self.through, self.channel_dim, self.ranks = through, channel_dim, ranks
        self.sums: dict[str, Sums] = {}
        self.places: dict[str, dict[str, None]] = {}
        self.graph: fx.GraphModule | None = None
        self.sites: dict[fx.Node, list[RecordedLayer]] | None = None
        self.path, self.why_not = "fx", ""
        try:
            self.graph = traced_graph(model)
        except CaptureError as error:
            lines = (line for line in str(error).splitlines() if not line.startswith("  do "))
            self.path, self.why_not = "hooks", "; ".join(line.removeprefix("  why  ") for line in lines)
        called = {str(n.target) for n in self.graph.graph.find_nodes(op="call_module")} if self.graph else set()
        self.unseen = [layer for layer in layers if layer not in called]

    def run(self, inputs: Inputs) -> None:
        """Runs one batch. The graph runs twice for the first batch, because the recorded nodes depend on shapes."""
        if self.graph is None:
            self.model(*inputs[0], **inputs[1])
            return
        values = for_placeholders(self.graph.graph, inputs)
        if self.sites is None:
            shapes: dict[fx.Node, tuple[int, ...]] = {}
            _Interpreter(self.graph, lambda node, made: shapes.update({node: tuple(made.shape)})).run(*values)
            self.sites = sites_in(self.graph, self.layers, shapes, self.through)
            self.sums, self.places = {}, {}  # the run for the shapes is not counted
        _Interpreter(self.graph, self._record).run(*values)

    def _record(self, node: fx.Node, made: Tensor) -> None:
        for site in (self.sites or {}).get(node, ()):
            self.add(site.layer, site.at, made, site.dim)

    def add(self, layer: str, at: str, made: Any, dim: int | None) -> None:
        """Adds one output of a layer to its sums. at: the point at which it was recorded."""
        if not isinstance(made, Tensor):
            raise PlanError(f'"{layer}" makes a {type(made).__name__}, not a tensor', do="name another layer")
        dim = self.channel_dim if dim is None else dim
        if dim is None and made.ndim > 2:
            raise PlanError(
                f'which dimension of "{layer}" holds the channels is not known',
                why=f"it makes {tuple(made.shape)}, and no layer before it says so",
                do="pass channel_dim, or name the convolution or linear layer before it",
            )
        if dim is not None and not -made.ndim <= dim < made.ndim:
            raise PlanError(
                f'"{layer}" has no dimension {dim}', why=f"it makes {tuple(made.shape)}", do="pass channel_dim=1 or -1"
            )
        sums = self.sums.setdefault(layer, Sums())
        self.places.setdefault(layer, {})[at] = None
        sums.add(layer, made, -1 if dim is None else dim, self.threshold, ranks=self.ranks)

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Sets hooks on layers that are no nodes of the graph, or on all layers if there is no graph."""
        root = self.model if self.graph is None else self.graph
        present = {name for name, _ in root.named_modules(remove_duplicate=False)}
        handles = []
        try:
            for layer in self.unseen:
                if layer in present:
                    handles.append(root.get_submodule(layer).register_forward_hook(self._hook(layer)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, made: Any) -> None:
            self.add(layer, layer, made, channel_dim_of(module))

        return hook


class _Interpreter(fx.Interpreter):
    """Runs a graph and shows every tensor that a node makes, before anything changes it in place."""

    def __init__(self, graph: fx.GraphModule, show: Callable[[fx.Node, Tensor], Any]) -> None:
        super().__init__(graph)
        self.show = show
        self.extra_traceback = False  # it would change the messages of errors

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if isinstance(made, Tensor):
            self.show(n, made)
        return made


def channel_dim_of(module: nn.Module) -> int | None:
    """Returns the dimension of the channels in a layer's output; None if its type does not say."""
    for kind, space in CONVOLUTIONS.items():
        if isinstance(module, kind):
            return -space - 1
    if isinstance(module, (_BatchNorm, _InstanceNorm, nn.GroupNorm)):
        return 1
    return -1 if isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm)) else None


def sites_in(
    graph: fx.GraphModule, layers: Sequence[str], shapes: Shapes, through: bool
) -> dict[fx.Node, list[RecordedLayer]]:
    """Returns the nodes at which activations are recorded, each with the layers that it is recorded for.

    For a call of a convolution or linear layer, this is the activation after it, or its own node if `through` is False
    (see `activation_statistics`). For a call of another module it is its own node; the dimension of its channels is
    that of the layer before it.
    """
    sites: dict[fx.Node, list[RecordedLayer]] = {}
    for node in graph.graph.find_nodes(op="call_module"):
        if node.target not in layers or node not in shapes:
            continue
        module = graph.get_submodule(str(node.target))
        dim = channel_dim_of(module)
        site = node
        if dim is None:
            dim = _dim_before(graph, node, shapes)
        elif through and not is_norm(graph, node):
            site = _activation_after(graph, node, dim, shapes)
        at = str(site.target) if site.op == "call_module" else site.name
        sites.setdefault(site, []).append(RecordedLayer(str(node.target), at, dim))
    return sites


def _activation_after(graph: fx.GraphModule, node: fx.Node, dim: int, shapes: Shapes) -> fx.Node:
    """Returns the first activation after a layer, with its thresholds; else the last norm after it, or the layer."""
    behind_norms, current, norms = node, node, True
    while (user := _only_user(current, node, dim, shapes)) is not None:
        if is_activation(graph, user) or is_threshold(graph, user):
            while (more := _only_user(user, node, dim, shapes)) is not None and is_threshold(graph, more):
                user = more
            return user
        if not keeps_channels(graph, user):
            break
        norms = norms and is_norm(graph, user)
        behind_norms = user if norms else behind_norms
        current = user
    return behind_norms


def _only_user(node: fx.Node, first: fx.Node, dim: int, shapes: Shapes) -> fx.Node | None:
    """Returns the user of a node if there is only one and it has as many channels as `first` in `dim`; else None."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is None or user not in shapes or len(shapes[user]) != len(shapes[first]):
        return None
    return user if shapes[user][dim] == shapes[first][dim] else None


def _dim_before(graph: fx.GraphModule, node: fx.Node, shapes: Shapes) -> int | None:
    """Returns the channel dimension of the nearest layer before a node, behind nodes that keep channels; else None."""
    seen: set[fx.Node] = set()
    queue = list(node.all_input_nodes)
    while queue:
        before = queue.pop(0)
        if before in seen or len(shapes.get(before, ())) != len(shapes[node]):
            continue
        seen.add(before)
        if before.op == "call_module":
            dim = channel_dim_of(graph.get_submodule(str(before.target)))
            if dim is not None:
                return dim
        if keeps_channels(graph, before) or is_activation(graph, before) or is_threshold(graph, before):
            queue += before.all_input_nodes
    return None
