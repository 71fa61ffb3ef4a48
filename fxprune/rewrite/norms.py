"""Statistics that keep counting their original width, so that the small model equals the masked reference.

In the masked reference, a layer norm, RMS norm or mean runs over N slots, N - N' of which are zero. The same number can
be computed from the N' slots that are left. How, is decided from the findings, before a plan is made:

- `nn.LayerNorm` becomes the `LayerNorm` of `norm_layers.py`, and so does `F.layer_norm` in a graph;
- layers that divide by a root mean square take it into their weight and their epsilon (`Rescale`); `nn.RMSNorm` without
  a weight of its own becomes the `RMSNorm` there, and so does `F.rms_norm` in a graph;
- a mean in a graph is multiplied by N' / N.

A statistic for which this is not exact is taken over the slots that are left, and its groups are marked as inexact.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Mark, Observation, Visit
from fxprune.analysis.settings import set_attribute
from fxprune.capture.module_copy import copy_module
from fxprune.capture.scopes import Key
from fxprune.channels.groups import Ints, Removal
from fxprune.channels.vector import Vector
from fxprune.ops import Operand
from fxprune.ops.aspects import RESPELLINGS
from fxprune.ops.normalization import default_eps
from fxprune.ops.reduction import wide_mean
from fxprune.ops.statistic import StatisticNode
from fxprune.planning.sizes import EPSILONS
from fxprune.proof.deterministic import NoRandomness
from fxprune.rewrite.norm_layers import WIDE, LayerNorm, RMSNorm, shape_of
from fxprune.rewrite.tensors import cut

FindingsT = TypeVar("FindingsT", bound=Findings)

aten = torch.ops.aten

# -- which statistics can be preserved --------------------------------------------------------------------


@dataclass(frozen=True)
class Swap:
    """A layer norm that becomes a `LayerNorm`, or an RMS norm that becomes an `RMSNorm`."""


@dataclass(frozen=True)
class Rescale:
    """A layer that computes y = x / sqrt(sum_i x_i^2 / N + eps) * (offset + weight).

    With x_i = 0 at removed slots, the sum over N is N' / N of the one over N'. So, with s = sqrt(N / N'),
    y = x / sqrt(sum_i x_i^2 / N' + eps * N / N') * s * (offset + weight): eps' = s^2 * eps, and
    weight' = s * (offset + weight) - offset (Zhang and Sennrich 2019, equation 4).

    attribute: the name of the attribute for eps. offset: 0, or 1 for layers that scale by 1 + weight.
    """

    attribute: str
    offset: int

    def weight(self, weight: Tensor, ratio: float) -> Tensor:
        """The new weight, for `ratio` = N / N'."""
        return math.sqrt(ratio) * (self.offset + weight) - self.offset

    def eps(self, module: nn.Module, ratio: float) -> float:
        """The new epsilon, for `ratio` = N / N'; a layer without one takes that of torch."""
        eps, weight = getattr(module, self.attribute), module.weight
        assert isinstance(weight, Tensor)
        return ratio * float(default_eps(weight.dtype) if eps is None else eps)


@dataclass(frozen=True)
class Respell:
    """A node that takes a statistic over these dimensions. write: a function that replaces it by another node."""

    write: Callable[[StatisticNode], fx.Node]
    vectors: tuple[Vector, ...]


def preserve(findings: FindingsT) -> FindingsT:
    """The findings without the marks of those statistics that can keep counting the original width.

    The statistics of one module over a channel are preserved all together or not at all: a variance with the old width
    and a mean with the new one would be wrong.
    """
    live = [(mark, channels) for mark in findings.observed.marks if len(channels := _channels(findings, mark.vector))]
    scopes = {mark.scope: [m for m, _ in live if m.scope == mark.scope] for mark, _ in live}
    ways = {scope: _way(findings, scope) for scope, marks in scopes.items() if all(m.width for m in marks)}
    chosen = {scope: way for scope, way in ways.items() if way is not None}
    while spoiled := _spoiled(findings, live, chosen):
        chosen = {scope: way for scope, way in chosen.items() if scope not in spoiled}
    marks = tuple(mark for mark in findings.observed.marks if mark.scope not in chosen)
    return replace(without_marks(findings, marks, lambda key: key[0] in chosen), preserved=chosen)


def why_changed(findings: Findings, mark: Mark) -> str:
    """The reason why a statistic of the findings that `preserve` has made still changes."""
    if not mark.width:
        if not findings.events[mark.event].op.endswith(("layer_norm", "rms_norm", "::mean")):
            return "only layer norms, RMS norms and means can count channels that are gone"
        return "the channels that go are not zero where it is taken"
    module = findings.events[mark.event].module
    if any(findings.events[other.event].module == module and not other.width for other in findings.observed.marks):
        return "another statistic of the same layer cannot be kept"
    if mark.scope.startswith("%"):
        return "it is computed in a way for which no other is known"
    layer = findings.captured.module.get_submodule(mark.scope.partition("|")[0])
    return f"the code of {type(layer).__name__} computes it and stays as it is"


def without_marks(findings: FindingsT, marks: tuple[Mark, ...], kept: Callable[[Key], bool]) -> FindingsT:
    """The findings with these marks only. kept: True for the operations that change no statistic any more."""
    pairs = [(walked, _unmarked(walked.observations, kept)) for walked in findings.walked]
    main, *others = (replace(walked, observations=observations) for walked, observations in pairs)
    return replace(findings, observed=replace(findings.observed, marks=marks, main=main, others=tuple(others)))


def _unmarked(observations: Mapping[str, Observation], kept: Callable[[Key], bool]) -> dict[str, Observation]:
    """The observations without the statistics of some operations."""
    return {
        name: replace(seen, marked={key: entry for key, entry in seen.marked.items() if not kept(key)})
        for name, seen in observations.items()
    }


def _channels(findings: Findings, vector: Vector) -> Ints:
    return np.flatnonzero(findings.solution.channels_in([vector]))


def _spoiled(findings: Findings, live: list[tuple[Mark, Ints]], chosen: Mapping[str, Any]) -> set[str]:
    """The chosen scopes that share a channel with a statistic of the same module that is not preserved."""
    where = {id(mark): findings.events[mark.event].module for mark, _ in live}
    others = [(mark, channels) for mark, channels in live if mark.scope not in chosen]
    return {
        mark.scope
        for mark, channels in live
        if mark.scope in chosen
        and any(where[id(m)] == where[id(mark)] and np.isin(c, channels).any() for m, c in others)
    }


def _way(findings: Findings, scope: str) -> Swap | Rescale | Respell | None:
    """A way to preserve all statistics of a scope, None if there is none. scope: path of a module, or "%node"."""
    if scope.startswith("%"):
        return _way_of_node(findings, next(n for n in findings.captured.graph.nodes if n.name == scope[1:]))
    module = findings.captured.module.get_submodule(scope)
    if type(module) is nn.LayerNorm:
        return Swap()
    owner = _owns_its_weight(findings, scope, module)
    if type(module) is nn.RMSNorm:
        return Rescale("eps", 0) if owner else Swap()
    if not owner:
        return None
    named = [name for name in EPSILONS if type(getattr(module, name, None)) is float]
    tries: list[Swap | Rescale] = [Rescale(name, offset) for name in named for offset in (0, 1)]
    tries += [Swap()] if isinstance(module, nn.LayerNorm) else []
    return next((way for way in tries if _agrees(findings, scope, module, way)), None)


def _owns_its_weight(findings: Findings, path: str, module: nn.Module) -> bool:
    """True if no other module has the same weight, so that its values may be changed."""
    key = f"{path}.weight"
    owners = [findings.owner(name) for name in findings.names_of(key)[1:]]
    return (
        key in findings.tensors
        and module._parameters.get("weight") is not None
        and all(owner is module for owner in owners)
    )


def _way_of_node(findings: Findings, node: fx.Node) -> Respell | None:
    write = RESPELLINGS.at(node.target) if node.op in ("call_function", "call_method") else None
    if write is None or "out" in node.kwargs:
        return None
    shape = _argument(node, 1, "normalized_shape")
    if write is wide_mean:
        calls = [call for call, _ in findings.observed.observations[node.name].marked.values()]
        return Respell(write, tuple(v for _, v in calls[0].marks)) if len(calls) == 1 else None
    input = findings.observed.nodes[_argument(node, 0, "input").name]
    shape = findings.observed.nodes[shape.name] if isinstance(shape, fx.Node) else shape
    return Respell(write, input.vectors[-len(shape) :])


def _argument(node: fx.Node, position: int, name: str) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _agrees(findings: Findings, path: str, module: nn.Module, way: Swap | Rescale) -> bool:
    """True if a module of any class gives the same results when it is made smaller in this way.

    It is tried in float64 on random numbers, with every second slot removed. One input has a variance near 1 and the
    other one near the epsilon, so that an error in either shows.
    """
    weight, visit = module._parameters["weight"], findings.observed.visits.get(path)
    own = {*module._parameters} <= {"weight", "bias"} and not module._buffers and not module._modules
    if weight is None or weight.ndim != 1 or not own or visit is None:
        return False
    dims = _dims_like(findings, visit, f"{path}.weight")
    if not dims or any(p is not None and p.shape != weight.shape for p in module._parameters.values()):
        return False
    size = len(weight)
    kept, gone = torch.arange(0, size, 2), torch.arange(1, size, 2)
    generator = torch.Generator().manual_seed(0)
    (input,) = visit.inputs

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    wide = {name: random(size).index_fill(0, gone, 0) for name, p in module._parameters.items() if p is not None}
    narrow = {name: p[kept] for name, p in wide.items()}
    if isinstance(way, Rescale):
        narrow["weight"] = way.weight(narrow["weight"], size / len(kept))
    original, small = _with(module, wide), _with(module, narrow)
    _recount(small, size, len(kept))
    _apply(small, way, module, size, len(kept))
    x = random(2, *input.shape)
    for dim in dims:
        x.index_fill_(dim + 1, gone, 0)
    x[1] *= math.sqrt(max(eps for name in EPSILONS if type(eps := getattr(module, name, 0.0)) is float))
    with torch.no_grad(), NoRandomness(), contextlib.suppress(Exception):
        for one in x:
            want, have = original.forward(one), small.forward(_take(one, dims, kept))  # without hooks
            error, scale = (_take(want, dims, kept) - have).abs().max(), want.abs().max()
            if want.shape != one.shape or not error <= 1e-9 * scale:
                return False
        return True
    return False


def _dims_like(findings: Findings, visit: Visit, parameter: str) -> list[int]:
    """The dimensions of a module's only input that have the same channels as its parameter; none for several inputs."""
    if len(visit.inputs) != 1 or not isinstance(visit.inputs[0], Operand):
        return []
    channels_of = findings.solution.channels_of
    want = channels_of(findings.axis_vector(parameter, 0))
    found = enumerate(map(channels_of, visit.inputs[0].vectors))
    return [d for d, have in found if len(have) and len(have) == len(want) and all(map(np.array_equal, have, want))]


def _take(tensor: Tensor, dims: list[int], index: Tensor) -> Tensor:
    for dim in dims:
        tensor = tensor.index_select(dim, index)
    return tensor


def _with(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module with other parameters, in evaluation mode."""
    tensors = {id(module._parameters[name]): new for name, new in parameters.items()}
    made = copy_module(module, lambda tensor: tensors.get(id(tensor), tensor))
    made.training = False
    return made


def _recount(module: nn.Module, size: int, count: int) -> None:
    """Set every attribute that is the width, or a shape of this width alone, to the new width."""
    for name, value in module.__dict__.items():
        if type(value) is int and value == size:
            module.__dict__[name] = count
        elif isinstance(value, (tuple, list)) and list(value) == [size]:
            module.__dict__[name] = type(value)([count])


# -- changes in the small model -----------------------------------------------------------------------------


def preserve_modules(small: nn.Module, findings: Findings, removal: Removal) -> None:
    """Set class and epsilon of the modules that keep counting their original width.

    Their sizes have been recounted before; their weights get new numbers later, see `rescaled`.
    """
    for path, way in (findings.preserved or {}).items():
        if isinstance(way, Respell):
            continue
        original, module = findings.captured.module.get_submodule(path), small.get_submodule(path)
        if isinstance(way, Swap):
            sizes = math.prod(shape_of(original)), math.prod(shape_of(module))
        else:
            sizes = _widths(findings, removal, path)
        _apply(module, way, original, *sizes)
    for module in small.modules() if findings.preserved else ():
        if any(isinstance(part, LayerNorm) for part in module.modules()):
            _slow_path(module)


def _slow_path(module: nn.Module) -> None:
    """Turn off the fused kernel of torch's transformer layers, which computes the layer norm itself."""
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    if isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False


def _apply(module: nn.Module, way: Swap | Rescale, original: nn.Module, width: int, count: int) -> None:
    if isinstance(way, Rescale):
        set_attribute(module, way.attribute, way.eps(original, width / count))
    elif width != count:
        module.__class__ = LayerNorm if isinstance(module, nn.LayerNorm) else RMSNorm
        module.width = width  # type: ignore[assignment]


def _widths(findings: Findings, removal: Removal, path: str) -> tuple[int, int]:
    """The old and the new number of elements of a module's weight, N and N'."""
    sizes = findings.tensors[f"{path}.weight"].shape
    left = {a.dim: removal.count(a.vector) for a in findings.axes if a.parameter == f"{path}.weight"}
    return math.prod(sizes), math.prod(left.get(d, n) for d, n in enumerate(sizes))


def rescaled(findings: Findings, removal: Removal) -> dict[str, Tensor]:
    """The new values of the weights of `Rescale`d modules, by all their names, in float64 and at their new size."""
    ways = {f"{path}.weight": (path, way) for path, way in (findings.preserved or {}).items()}
    kept, made = kept_slots(findings, removal) if ways else {}, {}
    for name, (path, way) in ways.items():
        if isinstance(way, Rescale) and name in kept:
            width, count = _widths(findings, removal, path)
            values = cut(findings.tensors[name].detach().to(torch.float64), kept[name])
            made.update(dict.fromkeys(findings.names_of(name), way.weight(values, width / count)))
    return made


def rescaled_layers(findings: Findings, removal: Removal) -> list[str]:
    """The paths of the layers whose weights get other numbers, see `rescaled`."""
    ways = (findings.preserved or {}).items()
    paths = (path for path, way in ways if isinstance(way, Rescale))
    return [path for path in paths if len(set(_widths(findings, removal, path))) > 1]


def preserve_nodes(
    small: nn.Module, graph: fx.Graph, old: Mapping[fx.Node, fx.Node], findings: Findings, removal: Removal
) -> None:
    """Replace the nodes that keep counting their original width; their sizes have been settled before.

    old: node of the small graph -> node of the original.
    """
    for node in list(graph.nodes):
        way = (findings.preserved or {}).get(f"%{old[node].name}")
        if not isinstance(way, Respell):
            continue
        width, counts = math.prod(v.size for v in way.vectors), removal.shape(way.vectors)
        if math.prod(counts) == width:
            continue
        with graph.inserting_after(node):
            made = way.write(_Statistic(small, graph, node, counts, width))
        made.meta = copy.copy(node.meta)
        node.replace_all_uses_with(made, delete_user_cb=lambda user, made=made: user is not made)
        if not node.users:
            graph.erase_node(node)


@dataclass(frozen=True)
class _Statistic:
    """The `StatisticNode` that is written into a graph."""

    small: nn.Module
    graph: fx.Graph
    node: fx.Node
    counts: tuple[int, ...]
    width: int

    def argument(self, position: int, name: str) -> Any:
        return _argument(self.node, position, name)

    def scaled(self, factor: float) -> fx.Node:
        multiply = aten.mul.Tensor if isinstance(self.node.target, torch._ops.OpOverload) else operator.mul
        return self.graph.call_function(multiply, (self.node, factor))

    def layer(self, kind: type[nn.Module], eps: float | None, *arguments: Any) -> fx.Node:
        """Add the layer as a module of the small model, so that an analysis of it treats the layer as one operation."""
        made = WIDE[kind](self.counts, eps, elementwise_affine=False, width=self.width)
        name = next(n for k in itertools.count() if not hasattr(self.small, n := f"preserved_norm_{k}"))
        made.training = self.small.training
        self.small.add_module(name, made)
        return self.graph.call_module(name, arguments)
