"""`analyze` and its result, an `Analysis`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxprune.analysis.analyzer import Analyzer
from fxprune.analysis.findings import Findings, Subject
from fxprune.analysis.single_layers import analyze_single_layers
from fxprune.arguments import checks_arguments
from fxprune.capture.captured import Captured, FrontEnd
from fxprune.capture.inputs import (
    Inputs,
    check_devices,
    check_initialised,
    check_plain,
    check_unhooked,
    check_unwrapped,
    normalize,
)
from fxprune.capture.methods import MethodCall, method_calls
from fxprune.capture.output_paths import output_paths
from fxprune.capture.process_state import public_call
from fxprune.capture.program import as_module
from fxprune.capture.tensors import Tensors
from fxprune.costs import ChannelCost, Cost, cost_of, per_channel
from fxprune.criteria.from_data import on_data
from fxprune.errors import CaptureError, PlanError
from fxprune.fold import make_plan, resolve_plan
from fxprune.paths import capture, paths_for, try_in_turn, without_hooks
from fxprune.planning.plan import Plan
from fxprune.report import analysis_data, dot, graph, view
from fxprune.report.views import checked
from fxprune.rewrite.kept_weights import keep_weights
from fxprune.rewrite.norms import preserve

NORMS = ("kept", "preserve")
"""The values of `norms`: statistics are taken over the kept channels, or preserved where that is exactly possible."""


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(Findings):
    """The result of `analyze`: the findings, and methods that make plans, costs, reports and graphs from them."""

    def plan(self, ratio: float | None = None, *, data: Any = None, loss: Any = None, **options: Any) -> Plan:
        """Make a plan. Options: those of `fxprune.planning.choose.choose`, and `bias` and `border` of `transform`.

        data, loss: for an importance that is measured, such as "taylor": see `transform`.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> plan = fxprune.analyze(net, torch.randn(1, 3, 8, 8)).plan(ratio=0.5, importance="l1")
        >>> sorted(plan.removed)
        ['0.bias', '0.weight', '2.weight']
        """
        importance = on_data(options.pop("importance", "l2"), self.model, self.inputs, data=data, loss=loss)
        return make_plan(self, ratio=ratio, importance=importance, **options).plan

    @checks_arguments()
    def cost(self, plan: Plan | None = None) -> Cost:
        """Parameters, bytes and MACs, in total and by layer: of the model, or of the small one that a plan would make.

        The small model is not made, but `fxprune.cost` of it would give the same. Raises `PlanError` if the plan was
        made for another model.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> analysis = fxprune.analyze(net, torch.randn(1, 4))
        >>> analysis.cost().macs, analysis.cost(analysis.plan(ratio=0.5)).macs
        (48, 24)
        """
        if plan is None:
            return cost_of(self)
        done = resolve_plan(self, plan)
        return cost_of(self, done.removal, done.constants)

    def cost_per_channel(self) -> tuple[ChannelCost, ...]:
        """The parameters and MACs that the model loses if one channel of a group is removed, for each of `groups`.

        They are counted for the first channel of each group.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fxprune.analyze(net, torch.randn(1, 4)).cost_per_channel()  # a row of 4, a bias, a column of 2
        (ChannelCost(params=7, macs=6),)
        """
        return per_channel(self)

    @checks_arguments()
    def report(self, format: str = "text") -> str:
        """A report on groups, the cost of one channel of each, and locked channels with reasons: see docs/report.md.

        format: "text", "markdown" or "json". Raises `InputError` for any other value.
        """
        checked(format)
        return view(analysis_data(self), format)

    @checks_arguments()
    def to_networkx(self, kind: str = "layers") -> Any:
        """The model as a graph of networkx.

        Args:
            kind: "layers" is a `DiGraph` of the modules that have parameters. An edge means that the output of one
                reaches the other without passing a third. "flow" is the same with inputs, outputs, and the operations
                at which branches meet. "groups" is a bipartite `MultiGraph` of groups and parameters. docs/report.md
                lists their attributes.

        "layers" and "flow" run the model once more, on fake tensors. Raises `InputError` for any other kind.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fxprune.analyze(net, torch.randn(1, 4)).to_networkx().edges(data="shape")
        OutEdgeDataView([('0', '2', (1, 8))])
        """
        return graph(self, kind)

    @checks_arguments()
    def to_dot(self, kind: str = "layers") -> str:
        """The graph of `to_networkx` as text for Graphviz. Write it to a file, and `dot -Tsvg file` draws it."""
        return dot(graph(self, kind))


@checks_arguments("also", "methods", "strict")
@public_call()
def analyze(
    model: nn.Module | ExportedProgram,
    example_inputs: Any,
    *,
    also: Sequence[Any] = (),
    methods: Mapping[str, Any] | None = None,
    strict: bool = False,
    path: str | None = None,
    prefer: str | None = None,
    norms: str = "kept",
    outputs: Any = None,
) -> Analysis:
    """Find out which channels of a model can be removed, and which of them only together.

    The model is not changed. It runs once on fake tensors, so that time and memory do not depend on the size of its
    weights. It runs as a graph if symbolic tracing works, else as it is.

    Args:
        model: any module, a `torch.fx.GraphModule`, or a `torch.export.ExportedProgram`.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        also: a list of further example inputs, for a forward that runs other code on them. Channels that are locked or
            tied on one of the inputs are so in the result.
        methods: name of another method -> the example inputs of one call of it, as for `fxprune.transform`.
        strict: raise `RuleError` at an operation without a rule, instead of locking the channels that enter it.
        path: use only this path: "fx", "eager", "export" or "hooks". See `fxprune.transform`.
        prefer: "class" tries the paths that keep the model's class first, "graph" those that make a graph. Without it
            "fx", "eager" and "export" are tried in turn.
        norms: the value that `transform` will get. With "preserve", groups whose statistics can be preserved exactly
            count as exact.
        outputs: the parts of the result that count: `"boxes"`, `0`, `("features", 0)`, or a list of such paths. See
            `fxprune.transform`.

    Raises:
        InputError: the inputs do not fit the model or a method, or its result has no such outputs.
        CaptureError: the model cannot be captured, or its forward raises.
        PlanError: there is no such path, preference or value of norms.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> fxprune.analyze(net, torch.randn(1, 4)).groups
    (Group('0', 8 channels, 0.weight[0], 0.bias[0], 2.weight[1]),)
    """
    model = as_module(model, example_inputs)
    if not isinstance(model, nn.Module):
        raise CaptureError("not a model", why=f"{type(model).__name__} is no torch.nn.Module", do="pass a module")
    paths = without_hooks(paths_for(model, path, prefer))
    inputs, more = normalize(example_inputs), [normalize(other) for other in also]
    counting = output_paths(outputs)
    check_unwrapped(model)
    tensors = Tensors.of(model)
    check_initialised(tensors)
    check_plain(model, tensors)
    check_unhooked(model)
    calls = method_calls(model, methods)
    for given in (inputs, *more, *(call.inputs for call in calls)):
        check_devices(tensors, given)
    if norms not in NORMS:
        raise PlanError(f"there are no norms {norms!r}", why='norms is "kept" or "preserve"')

    def on(path: FrontEnd) -> Analysis:
        captured = _captured(model, inputs, path, calls)
        subject = Subject(model, tensors, captured, inputs, tuple(more), counting, calls)
        return _analysis(subject, strict=strict, norms=norms)

    return try_in_turn(paths, on).get()


def _captured(model: nn.Module, inputs: Inputs, path: FrontEnd, methods: Sequence[MethodCall]) -> Captured:
    """The model, captured on one path. Raises `CaptureError` for methods on a path that makes a graph."""
    if methods and not path.keeps_class:
        raise CaptureError(
            f"methods cannot be observed on the path {path.name}",
            why=f"a graph is forward alone, and has no {methods[0].name}",
            do='leave out `methods`, or take a path that keeps the class (path="eager")',
        )
    return capture(model, inputs, path)


def _analysis(subject: Subject, *, strict: bool, norms: str) -> Analysis:
    findings = keep_weights(_walked(subject, strict=strict))
    findings = preserve(findings) if norms == "preserve" else findings
    return Analysis(**{part.name: getattr(findings, part.name) for part in fields(findings)})


def _walked(subject: Subject, *, strict: bool) -> Findings:
    captured = subject.captured
    if captured.needs_hooks:
        return analyze_single_layers(subject, strict=strict)
    try:
        return Analyzer(subject, strict=strict).run()
    except CaptureError as error:
        if captured.has_graph or not error.raised or captured.tensors.weightless:
            raise
        note = f"the forward decides by numbers, it was observed on real tensors: {error.first_why}"
        captured = replace(captured, real=True, notes=(*captured.notes, note))
        return Analyzer(replace(subject, captured=captured), strict=strict).run()
