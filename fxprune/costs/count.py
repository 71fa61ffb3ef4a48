"""The cost of a model, or of one that a plan would make, per module and in total: parameters, bytes and MACs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from fxprune.analysis.after_removal import shapes_after
from fxprune.analysis.counter import Counter, Found
from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import FoldedConstants, bias_name
from fxprune.analysis.hookable import outputs_behind_hooks
from fxprune.analysis.observed import Contraction
from fxprune.arguments import checks_arguments
from fxprune.capture.captured import Captured, FrontEnd
from fxprune.capture.fake_tensors import Faker, Real
from fxprune.capture.inputs import Inputs, check_initialised, normalize
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.capture.places import module_of
from fxprune.capture.program import as_module
from fxprune.capture.scopes import Scopes
from fxprune.capture.tensors import CONSTANT, PARAMETER, Tensors
from fxprune.capture.walk import walk
from fxprune.channels.groups import Removal
from fxprune.costs.runs import on_fakes_or_real
from fxprune.errors import counted
from fxprune.paths import capture, paths_for, try_in_turn, without_hooks


@dataclass(frozen=True)
class LayerCost:
    """The cost of one module by itself, without the modules in it.

    params, bytes: of the parameters (and buffers) that it owns; a tied one counts for its first owner.
    macs: multiply-adds of the operations that it runs; None where one of them is not counted.
    """

    params: int = 0
    bytes: int = 0
    macs: int | None = 0


@dataclass(frozen=True)
class Cost:
    """The cost of a model.

    params: elements of all parameters. bytes: of parameters and buffers.
    macs: multiply-adds of one forward. None if some operations are not counted: `uncounted` says which, and `at_least`
        is the number without them.
    layers: path -> cost of every module that owns a tensor or multiplies; their sums are the totals.
    """

    params: int
    bytes: int
    macs: int | None
    layers: Mapping[str, LayerCost] = field(default_factory=dict, repr=False, hash=False)
    at_least: int = field(default=0, repr=False)
    uncounted: tuple[str, ...] = field(default=(), repr=False)


def uncounted_text(uncounted: Sequence[str]) -> str:
    """The operations of `Cost.uncounted` in one line, each with the first place where it runs.

    >>> uncounted_text(["aten::_fft_r2c in mix.0", "aten::_fft_c2r in mix.0", "aten::_fft_r2c in mix.1"])
    'aten::_fft_r2c in mix.0 and 1 more module, aten::_fft_c2r in mix.0'
    """
    return ", ".join(uncounted_operations(uncounted).values())


def uncounted_operations(uncounted: Sequence[str]) -> dict[str, str]:
    """The operations of `Cost.uncounted` -> the operation with the first place where it runs, and how many more."""
    places: dict[str, list[str]] = {}
    for text in uncounted:
        places.setdefault(text.partition(" in ")[0], []).append(text)
    return {
        name: first + (f" and {counted(len(others), 'more module')}" if others else "")
        for name, (first, *others) in places.items()
    }


@checks_arguments("model")
@public_call_on_model
def cost(
    model: nn.Module | ExportedProgram, example_inputs: Any, *, path: str | None = None, prefer: str | None = None
) -> Cost:
    """Count a model's parameters, bytes, and the MACs of one forward on inputs of these shapes.

    MACs are the multiply-adds of convolutions, matrix products, attention and recurrent layers: 2 FLOPs = 1 MAC.
    Elementwise operations, statistics (normalisation, softmax), pooling, interpolation and lookups are not counted.
    Where an operation that may multiply and add up is unknown, `macs` is None. The forward runs on fake tensors, and
    nothing is computed; one that decides by numbers runs on real ones.

    Args:
        model, example_inputs: as `fxprune.transform` takes them.
        path: count on this path only: "fx", "eager", "export" or "hooks".
        prefer: "class" or "graph", as for `fxprune.transform`; without it the model's own forward is counted.

    Raises `InputError` where the inputs do not fit, `CaptureError` where the forward raises, `PlanError` for a path or
    preference that does not exist.

    >>> import torch, fxprune
    >>> found = fxprune.cost(torch.nn.Linear(10, 20), torch.zeros(3, 10))
    >>> found  # 10 * 20 + 20 parameters of 4 bytes; 3 * 10 * 20 multiply-adds
    Cost(params=220, bytes=880, macs=600)
    >>> found.layers
    {'': LayerCost(params=220, bytes=880, macs=600)}
    """
    module = as_module(model, example_inputs)
    paths = without_hooks(paths_for(module, path, prefer, usual="class"))
    inputs = normalize(example_inputs)
    tensors = Tensors.of(module)
    check_initialised(tensors)
    found = try_in_turn(paths, lambda path: _counted(module, inputs, path)).get()
    return _summed(module, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, tensors, found)


def _counted(model: nn.Module, inputs: Inputs, path: FrontEnd) -> list[Found]:
    """The multiply-adds of every operation on one path. It runs on fake tensors, or on real ones if numbers decide."""
    captured = capture(model, inputs, path)
    return on_fakes_or_real(captured, model, lambda faker: run_counted(captured, inputs, faker))


def cost_of(findings: Findings, removal: Removal | None = None, constants: FoldedConstants | None = None) -> Cost:
    """The cost of the model that was analysed, or of the smaller one that a removal leaves, as `cost` would count it.

    It comes from the analysis alone: no model is made or run.

    constants: the folded constants of the smaller model, which make its biases.
    """
    if removal is None:
        tensors = findings.subject.tensors
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    else:
        tensors, shapes = findings.captured.tensors, shapes_after(findings, removal)
    found = [(c.module, c.op, macs_of(c, removal)) for c in contractions(findings)]
    made = _with_constants(_summed(findings.model, shapes, tensors, found), tensors, constants or FoldedConstants())
    if removal is None or not findings.captured.needs_hooks:
        return made
    return _with_positions(made, findings, removal)


def macs_of(contraction: Contraction, removal: Removal | None = None) -> int | None:
    """The multiply-adds of an operation, in the smaller model if there is a removal; None if they are unknown."""
    if contraction.products is None:
        return None
    if removal is None:
        return sum(math.prod(v.size for v in vectors) for vectors in contraction.products)
    if any(removal.count(v) != v.size for v in contraction.inside):
        return None
    return sum(math.prod(map(removal.count, vectors)) for vectors in contraction.products)


def contractions(findings: Findings) -> Iterator[Contraction]:
    """Every operation of the analysis that does multiply-adds, in order."""
    for observation in findings.observed.observations.values():
        yield from observation.contractions


def run_counted(captured: Captured, inputs: Inputs, faker: Faker | Real) -> list[Found]:
    """The multiply-adds of every operation of one forward."""
    module = faker.module(captured.module)
    counter = Counter(Scopes(module))

    def visit(node: fx.Node, execute: Callable[[], Any]) -> Any:
        counter.module = module_of(node)
        counter.scopes.node(node.name)
        return execute()

    walk(captured.graph, module, faker, captured.values(inputs), visit, (counter.scopes.watching(), counter))
    return counter.found


def _bytes(tensor: torch.Tensor, elements: int) -> int:
    """The bytes of so many elements of a tensor. One that holds others, such as a quantised tensor, has their bytes."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None or not tensor.numel():
        return elements * int(tensor.element_size())
    inner: list[torch.Tensor] = [getattr(tensor, name) for name in flatten()[0]]
    return elements * sum(part.numel() * part.element_size() for part in inner) // tensor.numel()


def _summed(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], tensors: Tensors, found: Iterable[Found]) -> Cost:
    """The cost of tensors of these shapes and of the operations that were counted, by layer in the model's order."""
    params: dict[str, int] = {}
    octets: dict[str, int] = {}
    macs: dict[str, int | None] = {}
    least = 0
    uncounted: dict[str, None] = {}
    for entry in tensors.unique:
        if entry.kind != CONSTANT:
            path, elements = entry.owner, math.prod(shapes[entry.name])
            octets[path] = octets.get(path, 0) + _bytes(entry.tensor, elements)
            params[path] = params.get(path, 0) + (elements if entry.kind == PARAMETER else 0)
    for path, op, count in found:
        before = macs.get(path, 0)
        macs[path] = None if count is None or before is None else before + count
        least += count or 0
        if count is None:
            uncounted[f"{op} in {path or 'the model'}"] = None
    known = {*octets, *macs}
    declared = (path for path, _ in model.named_modules(remove_duplicate=False) if path in known)
    paths = dict.fromkeys((*declared, *octets, *macs))
    layers = {p: LayerCost(params.get(p, 0), octets.get(p, 0), macs.get(p, 0)) for p in paths}
    total = None if uncounted else least
    return Cost(sum(params.values()), sum(octets.values()), total, layers, least, tuple(uncounted))


def _with_constants(made: Cost, tensors: Tensors, constants: FoldedConstants) -> Cost:
    """The cost with folded constants: new biases are parameters, maps are buffers of the graph."""
    layers = dict(made.layers)
    parameters = (tensors[name] for name in tensors.names(PARAMETER))
    size = next((p.element_size() for p in parameters if p.is_floating_point()), 0)
    new = [(bias_name(place), bias, True) for place, bias in constants.biases.items()]
    for name, tensor, trained in [*new, *((node, values, False) for node, values in constants.maps.items())]:
        path = name.rpartition(".")[0] if trained else ""
        layer = layers.get(path, LayerCost(0, 0, 0))
        more = tensor.numel() * trained
        layers[path] = replace(layer, params=layer.params + more, bytes=layer.bytes + tensor.numel() * size)
    params, octets = (sum(getattr(layer, k) for layer in layers.values()) for k in ("params", "bytes"))
    return replace(made, layers=layers, params=params, bytes=octets)


def _with_positions(made: Cost, findings: Findings, removal: Removal) -> Cost:
    """The cost with the buffers of positions that layers with hooks have: 8 bytes for each kept output."""
    layers = dict(made.layers)
    for path, _, vector in outputs_behind_hooks(findings):
        if removal.kept(vector) is not None:
            layers[path] = replace(layers[path], bytes=layers[path].bytes + 8 * removal.count(vector))
    return replace(made, layers=layers, bytes=sum(layer.bytes for layer in layers.values()))
