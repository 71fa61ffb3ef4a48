"""`analyze`: one walk over the graph on fake tensors, rules applied, channels and groups read off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.fake import Faker
from fxprune.capture.inputs import Inputs, devices, for_placeholders, normalize
from fxprune.capture.observe import Observation, Observer, Place
from fxprune.capture.pause import collector_paused
from fxprune.capture.trace import module_of, source_of, trace
from fxprune.capture.walk import named_tensors, walk_on_fakes
from fxprune.channels.groups import Axis, solve
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector
from fxprune.errors import CaptureError
from fxprune.findings import Findings
from fxprune.planning.plan import Plan, make_plan
from fxprune.report import findings_report
from fxprune.rules import Event, Operand


class Analysis(Findings):
    """What `analyze` returns: the findings, and what can be done with them."""

    def plan(self, ratio: float | None = None, **options: Any) -> Plan:
        """What goes: see `fxprune.planning.plan.make_plan` for all options.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> plan = fxprune.analyze(net, torch.randn(1, 3, 8, 8)).plan(ratio=0.5, importance="l1")
        >>> sorted(plan.removed)
        ['0.bias', '0.weight', '2.weight']
        """
        return make_plan(self, ratio=ratio, **options)

    def report(self) -> str:
        """Groups and locked channels as a table of plain text."""
        return findings_report(self)


@collector_paused()
def analyze(model: nn.Module, example_inputs: Any, *, strict: bool = False) -> Analysis:
    """Find out which channels of `model` belong together.

    Reads the model, changes nothing. Traces it unless it is a `torch.fx.GraphModule` already, and runs the graph
    once on fake tensors, so that the cost does not depend on the size of the weights.

    Args:
        model: any module that `torch.fx` traces, or a traced one.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        strict: raise `RuleError` at an operation without a rule instead of keeping its channels.

    Raises:
        InputError: the inputs do not fit. CaptureError: the model cannot be traced or its forward raises.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> fxprune.analyze(net, torch.randn(1, 4)).groups
    (Group('0', 8 channels, 0.weight[0], 0.bias[0], 2.weight[1]),)
    """
    if not isinstance(model, nn.Module):
        raise CaptureError("not a model", why=f"{type(model).__name__} is no torch.nn.Module", do="pass a module")
    inputs = normalize(example_inputs)
    devices(model, inputs)
    return Analyzer(model, trace(model), inputs, strict=strict).run()


def hold(analysis: Analysis, node_name: str, why: str) -> Analysis | None:
    """The analysis with the channels locked that enter a node, or None where nothing is left to lock.

    Grids (heads, blocks) go first: a literal size inside an opaque function is mostly theirs. Everything else that
    enters follows if that was not it. The analysis passed in shares its terms with the result: use the new one.
    """
    node = next(n for n in analysis.graph_module.graph.nodes if n.name == node_name)
    operands = [analysis.nodes[n.name] for n in node.all_input_nodes]
    vectors = [v for o in pytree.tree_leaves(operands) if isinstance(o, Operand) for v in o.vectors]
    if node.op == "call_module":
        vectors += [a.vector for a in analysis.solution.axes if a.parameter.startswith(f"{node.target}.")]
    terms = analysis.solution.terms
    grids = [v for v in vectors if len(terms.resolve(v).columns) > 1]
    chosen = [v for v in grids or vectors if len(terms.free(v))]
    if not chosen:
        return None
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    analysis.events.append(Event(str(target), node.name, module_of(node), source_of(node), why))
    for vector in chosen:
        terms.lock(vector, len(analysis.events) - 1)
    held = copy.copy(analysis)
    for cached in ("groups", "inexact", "locked"):
        held.__dict__.pop(cached, None)
    held.solution = solve(terms, analysis.solution.axes)
    return held


class Analyzer:
    """The walk: `torch.fx.Interpreter` under the observing dispatch mode, parameters opened beforehand."""

    def __init__(self, model: nn.Module, graph_module: fx.GraphModule, inputs: Inputs, *, strict: bool) -> None:
        self.model, self.graph_module, self.inputs = model, graph_module, inputs
        self.terms = Terms()
        self.observer = Observer(self.terms, strict=strict)
        self.faker = Faker()
        self.tensors: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, list[str]] = {}
        self.axes: list[tuple[torch.Tensor, list[Axis]]] = []
        self.constants = _constants(model, graph_module)
        self.nodes: dict[str, Any] = {}
        self.observations: dict[str, Observation] = {}

    def run(self) -> Analysis:
        """Walk once and read the result off."""
        module = self.faker.module(self.graph_module)
        self._open_parameters()
        values = for_placeholders(self.graph_module.graph, self.inputs)
        walk_on_fakes(self.graph_module.graph, module, self.faker, values, self._visit, self.observer)
        self._follow_index_lists()
        every = [a for fake, opened in self.axes if id(fake) in self.observer.used for a in opened]
        axes = [a for a in every if a.parameter not in self.constants]
        return Analysis(
            self.model,
            self.graph_module,
            self.inputs,
            solve(self.terms, axes),
            self.observer,
            self.nodes,
            self.observations,
            self.tensors,
            self.aliases,
            every,
        )

    def _open_parameters(self) -> None:
        """Fresh atoms for every dimension of every parameter, buffer and tensor constant, once per tensor."""
        first: dict[int, str] = {}
        for name, tensor in named_tensors(self.graph_module):
            if id(tensor) in first:
                self.aliases.setdefault(first[id(tensor)], []).append(name)
                continue
            first[id(tensor)] = name
            self.tensors[name] = tensor
            fake = self.faker.tensor(tensor)
            vectors = tuple(self.terms.fresh(size) for size in tensor.shape)
            value = tensor if not tensor.is_floating_point() and tensor.device.type != "meta" else None
            registered = name not in self.constants  # the masked reference zeroes parameters and buffers only
            self.observer.bind(fake, Operand(vectors, tuple(registered or v.fixed for v in vectors), value))
            axes = [Axis(name, dim, v, tuple(tensor.shape)) for dim, v in enumerate(vectors) if not v.fixed]
            self.axes.append((fake, axes))

    def _visit(self, node: fx.Node, execute: Callable[[], Any]) -> Any:
        place = Place(node.name, module_of(node), source_of(node))
        self.observations[node.name] = self.observer.at(place)
        result = execute()
        self.nodes[node.name] = pytree.tree_map_only(torch.Tensor, self.observer.operand, result)
        if node.op == "output":
            event = self.observer.event("output", "output of the model")
            for operand in pytree.tree_leaves(self.nodes[node.name]):
                if isinstance(operand, Operand):
                    for vector in operand.vectors:
                        self.terms.lock(vector, event)
        return result

    def _follow_index_lists(self) -> None:
        """A buffer of positions used on two dimensions must be renumbered alike for both."""
        seen: dict[int, Vector] = {}
        for tensor, vector in self.observer.renumbered:
            before = seen.setdefault(id(tensor), vector)
            if before.size == vector.size:
                self.terms.same(before, vector)
            else:
                event = self.observer.event("index", "one list of positions indexes dimensions of different sizes")
                self.terms.lock(before, event)
                self.terms.lock(vector, event)


def _constants(model: nn.Module, graph_module: fx.GraphModule) -> set[str]:
    """Tensors of the graph that are neither parameters nor buffers of the model: they shrink, no plan names them."""
    registered = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    registered |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return {name for name, _ in named_tensors(graph_module)} - registered
