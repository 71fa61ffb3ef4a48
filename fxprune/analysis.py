"""`analyze`: one walk over the graph on fake tensors, rules applied, channels and groups read off."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.capture.caches import clean_caches
from fxprune.capture.captured import Captured
from fxprune.capture.fake import Faker, Real
from fxprune.capture.front import PATHS, capture
from fxprune.capture.inputs import Inputs, devices, initialised, normalize, unhooked, unwrapped
from fxprune.capture.observe import Contraction, Observation, Observer, Place
from fxprune.capture.pause import collector_paused
from fxprune.capture.scopes import Scope, Scopes
from fxprune.capture.settings import Settings
from fxprune.capture.trace import module_of, source_of
from fxprune.capture.values import leaves, objects_in, outline, tensors_in
from fxprune.capture.walk import walk
from fxprune.channels.groups import Axis, solve
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector
from fxprune.cost import ChannelCost, Cost, Counter, Found, per_channel, planned
from fxprune.errors import CaptureError, PlanError, RewriteError
from fxprune.findings import Findings, hookable
from fxprune.fold import carry_out, make_plan
from fxprune.planning.plan import Plan
from fxprune.report import analysis_data, dot, graph, view
from fxprune.report.views import checked
from fxprune.rewrite.norms import preserve
from fxprune.rules import Event, Operand

NORMS = ("kept", "preserve")
"""What a statistic counts: the channels that are left, or the original width where that is possible."""


class Analysis(Findings):
    """What `analyze` returns: the findings, and what can be done with them."""

    def plan(self, ratio: float | None = None, **options: Any) -> Plan:
        """What goes: see `fxprune.planning.plan.choose` for all options, and `bias` of `fxprune.transform`.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> plan = fxprune.analyze(net, torch.randn(1, 3, 8, 8)).plan(ratio=0.5, importance="l1")
        >>> sorted(plan.removed)
        ['0.bias', '0.weight', '2.weight']
        """
        return make_plan(self, ratio=ratio, **options).plan

    def cost(self, plan: Plan | None = None) -> Cost:
        """What the model costs, or the one that a plan would make: parameters, bytes and MACs, in total and by layer.

        Counted from the analysis, without making that model: `fxprune.cost` of it gives the same. Raises `PlanError`
        where the plan was made for another model.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> analysis = fxprune.analyze(net, torch.randn(1, 4))
        >>> analysis.cost().macs, analysis.cost(analysis.plan(ratio=0.5)).macs
        (48, 24)
        """
        if plan is None:
            return planned(self)
        done = carry_out(self, plan)
        return planned(self, done.removal, done.constants)

    def cost_per_channel(self) -> tuple[ChannelCost, ...]:
        """Parameters and MACs that one channel of each group costs: what the model has less of if it goes alone.

        In the order of `groups`, each for the group's first channel.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fxprune.analyze(net, torch.randn(1, 4)).cost_per_channel()  # a row of 4, a bias, a column of 2
        (ChannelCost(params=7, macs=6),)
        """
        return per_channel(self)

    def report(self, format: str = "text") -> str:
        """Groups, what one channel of each costs, and what is locked by which operation: docs/report.md.

        format: "text", "markdown" or "json". Raises `InputError` for any other.
        """
        checked(format)
        return view(analysis_data(self), format)

    def to_networkx(self, kind: str = "layers") -> Any:
        """The model as a graph of networkx.

        kind: "layers", a `DiGraph` of the modules that own parameters, an edge where the output of the one reaches the
        other through operations only; "flow", the same with inputs, outputs and the operations at which branches meet;
        "groups", a bipartite `MultiGraph` of groups and parameters. docs/report.md lists their attributes.

        The first two run the model once more, on fake tensors. Raises `InputError` for any other kind.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fxprune.analyze(net, torch.randn(1, 4)).to_networkx().edges(data="shape")
        OutEdgeDataView([('0', '2', (1, 8))])
        """
        return graph(self, kind)

    def to_dot(self, kind: str = "layers") -> str:
        """The same graph as text for Graphviz: write it to a file, and `dot -Tsvg file` draws it."""
        return dot(graph(self, kind))


@collector_paused()
def analyze(
    model: nn.Module,
    example_inputs: Any,
    *,
    also: Sequence[Any] = (),
    strict: bool = False,
    path: str | None = None,
    norms: str = "kept",
) -> Analysis:
    """Find out which channels of `model` belong together.

    Reads the model, changes nothing. Runs it once on fake tensors, so that the cost does not depend on the size of
    the weights: as a graph where symbolic tracing takes it, else as it is.

    Args:
        model: any module, or a `torch.fx.GraphModule`.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        also: more example inputs, for a forward that does other things on them; what holds for one holds for all.
        strict: raise `RuleError` at an operation without a rule instead of keeping its channels.
        path: look at the model in this way only: "fx", "eager", "export" or "hooks".
        norms: "kept", or "preserve" for a `transform` that goes on counting the original width; such groups are exact.

    Raises:
        InputError: the inputs do not fit. CaptureError: the model cannot be captured or its forward raises.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> fxprune.analyze(net, torch.randn(1, 4)).groups
    (Group('0', 8 channels, 0.weight[0], 0.bias[0], 2.weight[1]),)
    """
    if not isinstance(model, nn.Module):
        raise CaptureError("not a model", why=f"{type(model).__name__} is no torch.nn.Module", do="pass a module")
    inputs, more = normalize(example_inputs), [normalize(other) for other in also]
    unwrapped(model)
    initialised(model)
    unhooked(model)
    for given in (inputs, *more):
        devices(model, given)
    if norms not in NORMS:
        raise PlanError(f"there are no norms {norms!r}", why='norms is "kept" or "preserve"')
    if path is not None or isinstance(model, fx.GraphModule):
        return _analysis(model, inputs, path or "fx", more, strict, norms)
    errors: list[CaptureError] = []
    for rung in PATHS[:-1]:
        try:
            return _analysis(model, inputs, rung, more, strict, norms)
        except CaptureError as error:
            errors.append(error)
    raise telling(errors)


def _analysis(
    model: nn.Module, inputs: Inputs, path: str, more: Sequence[Inputs], strict: bool, norms: str
) -> Analysis:
    analysis = _walked(model, inputs, path, more, strict)
    return preserve(analysis) if norms == "preserve" else analysis


def _walked(model: nn.Module, inputs: Inputs, path: str, more: Sequence[Inputs], strict: bool) -> Analysis:
    captured = capture(model, inputs, path)
    if path == "hooks":
        return Analyzer(model, captured, inputs, more, strict=strict).layers()
    try:
        return Analyzer(model, captured, inputs, more, strict=strict).run()
    except CaptureError as error:
        weightless = any(t.device.type == "meta" for _, t in captured.tensors())
        if path != "eager" or not error.raised or weightless:
            raise
        note = f"the forward decides by numbers, it was observed on real tensors: {error.why}"
        captured = replace(captured, real=True, notes=(*captured.notes, note))
        return Analyzer(model, captured, inputs, more, strict=strict).run()


def telling(errors: Sequence[CaptureError]) -> CaptureError:
    """Of the errors of several rungs the one that says most: where forward itself raises, else the first."""
    return next((error for error in errors if error.raised), errors[0])


def hold(analysis: Analysis, error: RewriteError) -> Analysis | None:
    """The analysis with the channels locked that could not be rewritten, or None where nothing is left to lock.

    Grids (heads, blocks) go first: a literal size inside an opaque function is mostly theirs. Everything else that
    enters follows if that was not it. What fails in one block of a model fails in all of them: they are held together.
    The analysis passed in shares its terms with the result: use the new one.
    """
    node = next(n for n in analysis.captured.graph.nodes if n.name == error.node)
    vectors = list(error.vectors)
    if not vectors:
        vectors = [v for scope in _alike(analysis, error.scope) for v in _inside(analysis, error.node, scope)]
    if not vectors:
        vectors = [v for same in _same_function(analysis, node) for v in _entering(analysis, same)]
    terms = analysis.solution.terms
    why = f"its sizes cannot be counted anew: {error.why}"
    grids = [v for v in vectors if len(terms.resolve(v).columns) > 1]
    chosen = [v for v in grids or vectors if len(terms.free(v))]
    if not chosen:
        return None
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    where = error.scope if error.scope and not error.scope.startswith("%") else module_of(node)
    analysis.events.append(Event(str(target or "forward"), node.name, where, source_of(node), why))
    for vector in chosen:
        terms.lock(vector, len(analysis.events) - 1)
    held = copy.copy(analysis)
    for cached in ("groups", "inexact", "locked", "heads"):
        held.__dict__.pop(cached, None)
    held.solution = solve(terms, analysis.solution.axes)
    return held


def _entering(analysis: Analysis, node: fx.Node) -> list[Vector]:
    operands = [analysis.nodes[n.name] for n in node.all_input_nodes]
    vectors = [v for o in leaves(operands, Operand) if isinstance(o, Operand) for v in o.vectors]
    if node.op == "call_module":
        vectors += [a.vector for a in analysis.solution.axes if a.parameter.startswith(f"{node.target}.")]
    return vectors


def _alike(analysis: Analysis, scope: str) -> list[str]:
    """The paths of a module and of all others of its class; none for a node, one for a layer of torch."""
    if not scope or scope.startswith("%"):
        return []
    kind = type(analysis.captured.module.get_submodule(scope))
    if kind.__module__.startswith("torch."):
        return [scope]
    return [name for name, module in analysis.captured.module.named_modules() if type(module) is kind]


def _same_function(analysis: Analysis, node: fx.Node) -> list[fx.Node]:
    """All calls of the function that a node calls, the node alone if it is one of torch's."""
    if not isinstance(node.target, types.FunctionType) or node.target.__module__.startswith("torch."):
        return [node]
    return list(analysis.captured.graph.find_nodes(op="call_function", target=node.target))


def _inside(analysis: Analysis, node: str, scope: str) -> list[Vector]:
    """What the operations of a module inside a node made, or else took, as far as something can still go there."""
    terms = analysis.solution.terms
    outputs = analysis.observations[node].outputs
    made = [
        v for key, operands in outputs.items() if key[0].partition("|")[0] == scope for o in operands for v in o.vectors
    ]
    visit = analysis.visits.get(scope)
    taken = [v for o in leaves(visit.inputs if visit else (), Operand) if isinstance(o, Operand) for v in o.vectors]
    return [v for v in made if len(terms.free(v))] or [v for v in taken if len(terms.free(v))]


class Analyzer:
    """The walk: the graph is run under the observing dispatch mode, parameters opened beforehand."""

    def __init__(
        self, model: nn.Module, captured: Captured, inputs: Inputs, more: Sequence[Inputs], *, strict: bool
    ) -> None:
        self.model, self.captured, self.inputs, self.more = model, captured, inputs, more
        self.terms = Terms()
        self.faker = Real() if captured.real else Faker()
        self.module = self.faker.module(captured.module)
        self.scopes = Scopes(self.module)
        self.observer = Observer(self.terms, self.scopes, strict=strict)
        self.settings = Settings(self.observer)
        self.tensors: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, list[str]] = {}
        self.axes: list[tuple[torch.Tensor, list[Axis]]] = []
        self.constants = _constants(model, captured)
        self.nodes: dict[str, Any] = {}
        self.observations: dict[str, Observation] = {}
        self.notes: list[str] = list(captured.notes)
        self.counted: list[Found] = []

    def run(self) -> Analysis:
        """Walk once and read the result off."""
        self._open_parameters()
        self.settings.mark(self.module)
        for inputs in reversed((self.inputs, *self.more)):  # the first is walked last, and what it shows is kept
            values = self.captured.values(inputs)
            modes = (self.scopes.watching(), self.settings, self.observer)
            self.scopes.restart()
            with clean_caches(self.model):
                walk(self.captured.graph, self.module, self.faker, values, self._visit, modes)
        self._follow_index_lists()
        self._lock_unreached()
        self._note_unreached()
        return self._analysis()

    def layers(self) -> Analysis:
        """Every layer's outputs are channels of their own, to be put back by a hook; results of the model stay."""
        results = self._results()
        self._open_parameters()
        weights = {path: f"{path}.weight" for path, _ in hookable(self.captured.module)}
        opened = {f"{path}.{leaf}" for path in weights for leaf in ("weight", "bias")}
        held = self.observer.event("hooks", "layers are looked at one by one, so only their own outputs can go")
        vectors = {(a.parameter, a.dim): a.vector for _, axes in self.axes for a in axes}
        for (name, dim), vector in vectors.items():
            if name not in opened or dim:
                self.terms.lock(vector, held)
        output = self.observer.event("output", "output of the model")
        for path, weight in weights.items():
            if path in results and (weight, 0) in vectors:
                self.terms.lock(vectors[weight, 0], output)
            if (f"{path}.bias", 0) in vectors and (weight, 0) in vectors:
                self.terms.same(vectors[weight, 0], vectors[f"{path}.bias", 0])
        self.observations = {node.name: Observation() for node in self.captured.graph.nodes}
        self.observations["forward"].contractions += [
            self._scaled(*found, vectors.get((weights.get(found[0], ""), 0))) for found in self.counted
        ]
        self.observer.used.update(id(fake) for fake, _ in self.axes)
        return self._analysis()

    def _scaled(self, path: str, op: str, macs: int | None, rows: Vector | None) -> Contraction:
        """What a layer multiplies is in proportion to its own outputs; what the rest does stays."""
        if macs is None:
            return Contraction(op, path, None)
        shares = (self.terms.fixed(macs),) if rows is None else (self.terms.fixed(macs // rows.size), rows)
        return Contraction(op, path, [shares])

    def _results(self) -> set[str]:
        """The layers whose output is a result of the model, as it is or seen in another shape."""
        layers = {path for path, _ in hookable(self.captured.module)}
        made: dict[int, tuple[str, torch.Tensor]] = {}  # holds the tensors, so that no address is used twice

        def leave(scope: Scope, args: Any, kwargs: Any, output: Any) -> None:
            if scope.name in layers:
                made.update((t.untyped_storage().data_ptr(), (scope.name, t)) for t in tensors_in(output))

        self.scopes.enter, self.scopes.leave = lambda scope: None, leave
        values = self.captured.values(self.inputs)
        visit = lambda node, execute: execute()  # noqa: E731
        counter = Counter(self.scopes)
        modes = (self.scopes.watching(), counter)
        results = walk(self.captured.graph, self.module, self.faker, values, visit, modes)
        self.counted = counter.found
        found = (made.get(tensor.untyped_storage().data_ptr()) for tensor in tensors_in(results))
        return {entry[0] for entry in found if entry is not None}

    def _analysis(self) -> Analysis:
        every = [a for fake, opened in self.axes if id(fake) in self.observer.used for a in opened]
        axes = [a for a in every if a.parameter not in self.constants]
        return Analysis(
            self.model,
            self.captured,
            self.inputs,
            solve(self.terms, axes),
            self.observer,
            self.nodes,
            self.observations,
            self.tensors,
            self.aliases,
            every,
            self.settings.found,
            tuple(dict.fromkeys(self.notes)),
            tuple(self.more),
        )

    def _open_parameters(self) -> None:
        """Fresh atoms for every dimension of every parameter, buffer and tensor constant, once per tensor."""
        first: dict[int, str] = {}
        for name, tensor in self.captured.tensors():
            if id(tensor) in first:
                self.aliases.setdefault(first[id(tensor)], []).append(name)
                continue
            first[id(tensor)] = name
            self.tensors[name] = tensor
            fake = self.faker.tensor(tensor)
            vectors = tuple(self.terms.fresh(size) for size in tensor.shape)
            value = tensor if not tensor.is_floating_point() and tensor.device.type != "meta" else None
            registered = name not in self.constants  # the masked reference zeroes parameters and buffers only
            self.observer.reach.open(fake, tensor)
            self.observer.bind(fake, Operand(vectors, tuple(registered or v.fixed for v in vectors), value))
            axes = [Axis(name, dim, v, tuple(tensor.shape)) for dim, v in enumerate(vectors) if not v.fixed]
            self.axes.append((fake, axes))

    def _visit(self, node: fx.Node, execute: Callable[[], Any]) -> Any:
        place = Place(node.name, module_of(node), source_of(node))
        self.observations[node.name] = self.observer.at(place)
        result = execute()
        if node.op == "placeholder":
            self._open_inputs(result)
        self.nodes[node.name] = outline(result, self.observer.peek)
        if node.op == "output":
            self._lock_results(result)
        return result

    def _open_inputs(self, result: Any) -> None:
        """Inputs are fixed, and their numbers are not known, also where they are real."""
        for tensor in tensors_in(result):
            fixed = tuple(self.terms.fixed(size) for size in tensor.shape)
            self.observer.bind(tensor, Operand(fixed, (True,) * len(fixed)))

    def _lock_results(self, result: Any) -> None:
        event = self.observer.event("output", "output of the model")
        for tensor in tensors_in(result):
            operand = self.observer.operand(tensor)
            for vector in (*operand.vectors, *((operand.labels,) if operand.labels is not None else ())):
                self.terms.lock(vector, event)
        for name in objects_in(result):
            self.notes.append(f"{name} in the result is taken for internal state: it has the widths of the model")

    def _lock_unreached(self) -> None:
        """Slots that only other inputs reach, such as positions beyond the length of the example, stay."""
        event = self.observer.event("slice", "the example inputs do not reach these slots")
        for fake, axes in self.axes:
            missed = self.observer.reach.missed(fake)
            for axis in axes:
                if axis.dim in missed:
                    self.terms.lock(axis.vector.take(np.flatnonzero(missed[axis.dim])), event)

    def _note_unreached(self) -> None:
        """In a graph, what forward does not reach is left out; a class keeps it, at its old width."""
        trained = ((n, t) for n, t in self.tensors.items() if isinstance(t, nn.Parameter))
        names = [name for name, t in trained if id(self.faker.tensor(t)) not in self.observer.used]
        if names and self.captured.path == "eager":
            listed = ", ".join(names[:4]) + (f", ... {len(names) - 4} more" if len(names) > 4 else "")
            also = "; if other inputs reach them, give such inputs with `also`" if self.captured.real else ""
            self.notes.append(f"not reached on the example inputs, and left as they are: {listed}{also}")

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


def _constants(model: nn.Module, captured: Captured) -> set[str]:
    """Tensors that are neither parameters nor buffers of the model: they shrink, no plan names them."""
    registered = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    registered |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return {name for name, _ in captured.tensors()} - registered
