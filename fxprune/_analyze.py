"""`analyze`: one walk over the graph on fake tensors, rules applied, channels and groups read off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from fxprune.analysis.analyzer import Analyzer
from fxprune.analysis.findings import Findings, Subject
from fxprune.analysis.single_layers import analyze_single_layers
from fxprune.capture.captured import FrontEnd
from fxprune.capture.inputs import Inputs, check_devices, check_initialised, check_unhooked, check_unwrapped, normalize
from fxprune.capture.process_state import public_call
from fxprune.capture.tensors import Tensors
from fxprune.costs import ChannelCost, Cost, cost_of, per_channel
from fxprune.errors import CaptureError, PlanError
from fxprune.fold import make_plan, resolve_plan
from fxprune.paths import capture, paths_for, try_in_turn, without_hooks
from fxprune.planning.plan import Plan
from fxprune.report import analysis_data, dot, graph, view
from fxprune.report.views import checked
from fxprune.rewrite.norms import preserve

NORMS = ("kept", "preserve")
"""What a statistic counts: the channels that are left, or the original width where that is possible."""


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(Findings):
    """The findings of `analyze`, with plans, costs, reports and graphs made from them."""

    def plan(self, ratio: float | None = None, **options: Any) -> Plan:
        """Make a plan: see `fxprune.planning.choose.choose` for all options, and `bias` of `fxprune.transform`.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> plan = fxprune.analyze(net, torch.randn(1, 3, 8, 8)).plan(ratio=0.5, importance="l1")
        >>> sorted(plan.removed)
        ['0.bias', '0.weight', '2.weight']
        """
        return make_plan(self, ratio=ratio, **options).plan

    def cost(self, plan: Plan | None = None) -> Cost:
        """Count parameters, bytes and MACs of the model, or of the one that a plan would make, in total and by layer.

        Counted from the analysis, without making that model: `fxprune.cost` of it gives the same. Raises `PlanError`
        where the plan was made for another model.

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


@public_call()
def analyze(
    model: nn.Module,
    example_inputs: Any,
    *,
    also: Sequence[Any] = (),
    strict: bool = False,
    path: str | None = None,
    prefer: str | None = None,
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
        path: look at the model on this path only: "fx", "eager", "export" or "hooks".
        prefer: "class" tries first what keeps the model's class, "graph" what makes a graph; without it "fx", "eager",
            "export" are tried in turn. See `fxprune.transform`.
        norms: "kept", or "preserve" for a `transform` that goes on counting the original width; such groups are exact.

    Raises:
        InputError: the inputs do not fit. CaptureError: the model cannot be captured or its forward raises.
        PlanError: there is no such path, preference or value of norms.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> fxprune.analyze(net, torch.randn(1, 4)).groups
    (Group('0', 8 channels, 0.weight[0], 0.bias[0], 2.weight[1]),)
    """
    if not isinstance(model, nn.Module):
        raise CaptureError("not a model", why=f"{type(model).__name__} is no torch.nn.Module", do="pass a module")
    paths = without_hooks(paths_for(model, path, prefer))
    inputs, more = normalize(example_inputs), [normalize(other) for other in also]
    check_unwrapped(model)
    tensors = Tensors.of(model)
    check_initialised(tensors)
    check_unhooked(model)
    for given in (inputs, *more):
        check_devices(tensors, given)
    if norms not in NORMS:
        raise PlanError(f"there are no norms {norms!r}", why='norms is "kept" or "preserve"')
    return try_in_turn(paths, lambda path: _analysis(model, tensors, inputs, path, more, strict, norms)).get()


def _analysis(
    model: nn.Module,
    tensors: Tensors,
    inputs: Inputs,
    path: FrontEnd,
    more: Sequence[Inputs],
    strict: bool,
    norms: str,
) -> Analysis:
    findings = _walked(model, tensors, inputs, path, more, strict)
    findings = preserve(findings) if norms == "preserve" else findings
    return Analysis(**{part.name: getattr(findings, part.name) for part in fields(findings)})


def _walked(
    model: nn.Module, tensors: Tensors, inputs: Inputs, path: FrontEnd, more: Sequence[Inputs], strict: bool
) -> Findings:
    captured = capture(model, inputs, path)
    subject = Subject(model, tensors, captured, inputs, tuple(more))
    if captured.needs_hooks:
        return analyze_single_layers(subject, strict=strict)
    try:
        return Analyzer(subject, strict=strict).run()
    except CaptureError as error:
        if captured.has_graph or not error.raised or captured.tensors.weightless:
            raise
        note = f"the forward decides by numbers, it was observed on real tensors: {error.why}"
        captured = replace(captured, real=True, notes=(*captured.notes, note))
        return Analyzer(replace(subject, captured=captured), strict=strict).run()
