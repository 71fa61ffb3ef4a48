"""`analyze` and its result, an `Analysis`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxprune._attempt import Request
from fxprune._carry_out import carry_out
from fxprune._data_options import DataOptions
from fxprune._drop import find_branches
from fxprune._dropping import without_branches
from fxprune._find import AnalyzeArguments, find
from fxprune.analysis.findings import Findings
from fxprune.analysis.settings import changed_setting
from fxprune.arguments import checks_arguments, refuse_unknown, shown
from fxprune.capture.kept_buffers import public_call_on_model
from fxprune.capture.model_form import ModelForm, form_of
from fxprune.capture.process_state import public_call
from fxprune.costs import ChannelCost, Cost, cost_of, per_channel
from fxprune.criteria import ChannelScores, Importance
from fxprune.criteria.from_data import on_data
from fxprune.criteria.saved_scores import scores_of_groups
from fxprune.depth.branches import Branch
from fxprune.depth.carry_out import without_dropped
from fxprune.errors import PlanError, level_of_user
from fxprune.fold import make_plan, resolve_plan
from fxprune.planning.choose import choose
from fxprune.planning.plan import Plan
from fxprune.planning.select import importance_by_pattern, warning_of_several
from fxprune.report import analysis_data, dot, graph, view
from fxprune.report.html import Curves, analysis_page
from fxprune.report.text import analysis_table
from fxprune.report.views import page_wanted


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(Findings):
    """The result of `analyze`: the findings, and methods that make plans, costs, models, reports and graphs from them.

    The model may be trained after the analysis: everything is computed with the weights that it has then.
    """

    _call: AnalyzeArguments = field(kw_only=True)
    _form: ModelForm = field(kw_only=True)

    def plan(
        self, ratio: float | None = None, *, data: Any = None, loss: Any = None, scores: Any = None, **options: Any
    ) -> Plan:
        """Make a plan. Options: those of `fxprune.planning.choose.choose`; `bias`, `border` and `drop` of `transform`.

        data, loss: for an importance that is measured, such as "taylor": see `transform`.
        scores: instead of an importance, what `scores` returned, or the name of a file that holds it.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> plan = fxprune.analyze(net, torch.randn(1, 3, 8, 8)).plan(ratio=0.5, importance="l1")
        >>> sorted(plan.removed)
        ['0.bias', '0.weight', '2.weight']
        """
        refuse_unknown("Analysis.plan", options, choose, make_plan, more=("drop",))
        shallow = without_branches(self._call, None, {**options, "ratio": ratio})
        findings = find(replace(self._call, model=shallow.model)) if shallow.dropped else self
        choices = dict(shallow.choices)
        importance = on_data(
            choices.pop("importance", "l2"), findings.model, self.inputs, data=data, loss=loss, scores=scores
        )
        plan = make_plan(findings, importance=importance, **choices).plan
        if text := warning_of_several(findings, choices):
            warnings.warn(text, UserWarning, stacklevel=level_of_user())
        if shallow.dropped:
            plan = replace(plan, dropped=shallow.dropped, reasons=() if shallow.alone else plan.reasons)
        return plan.made_from(findings)

    @checks_arguments("plan")
    @public_call()
    def transform(self, plan: Plan | None = None, **options: Any) -> Any:
        """A smaller model, as `fxprune.transform` makes it, without analysing again.

        Args:
            plan: the channels to remove. Without a plan, `options` say how to make one.
            options: those of `fxprune.transform`: ratio, keep, importance, bias, verify, repair and so on. `also`,
                `methods`, `strict`, `path`, `prefer`, `norms` and `outputs` are those of the analysis.

        The model may have been trained since it was analysed. Raises `PlanError` if something else has changed: its
        modules, their settings, modes or hooks, or the shape, dtype or device of a tensor.

        If the path of the analysis does not work, the others are tried, which needs an analysis for each. The model is
        also analysed again if its tensors are other objects now, and if its forward depends on numbers in its tensors.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> analysis = fxprune.analyze(net, torch.randn(1, 4))
        >>> plan = analysis.plan(ratio=0.5)
        >>> analysis.transform(plan)[0]
        Linear(in_features=4, out_features=4, bias=True)
        """
        _refuse_own_options(options)
        now = form_of(self.model)
        if changed := now.difference(self._form) or changed_setting(self.model, self.uses.before):
            raise PlanError(
                "the model is no longer the one that was analysed", why=changed, do="call fxprune.analyze again"
            )
        known = {} if self.captured.real or not now.same_objects(self._form) else {self.captured.path: self}
        on = DataOptions(**{name: options.pop(name) for name in DataOptions.__dataclass_fields__ if name in options})
        verify = options.pop("verify", True)
        return carry_out(Request(self._call, plan, options, verify, known), on)

    @checks_arguments("seed")
    def scores(
        self, importance: Importance = "l2", *, data: Any = None, loss: Any = None, seed: int | None = None
    ) -> ChannelScores:
        """The scores of all channels by an importance, measured once for any number of plans.

        `fxprune.criteria.save_scores` writes them to a file. Groups that the importance cannot rank have none; a plan
        that would prune them says why. Arguments and errors are those of `plan`.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> analysis = fxprune.analyze(net, torch.randn(1, 4))
        >>> scores = analysis.scores("taylor", data=[torch.randn(9, 4)], loss=lambda model, x: model(x).square().mean())
        >>> [len(analysis.plan(keep={"macs": share}, scores=scores).removed["0.bias"][0]) for share in (0.5, 0.25)]
        [4, 6]
        """
        name = importance if isinstance(importance, str) else getattr(importance, "__name__", type(importance).__name__)
        made = on_data(importance, self.model, self.inputs, data=data, loss=loss)
        return scores_of_groups(self, importance_by_pattern(self, made), seed, name)

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
        findings = self._without_branches_of(plan)
        done = resolve_plan(findings, plan)
        return cost_of(findings, done.removal, done.constants)

    def _without_branches_of(self, plan: Plan) -> Findings:
        """The findings of the model without the branches that a plan drops; these findings if it drops none."""
        if not plan.dropped:
            return self
        return find(replace(self._call, model=without_dropped(self.model, plan.dropped)))

    def cost_per_channel(self) -> tuple[ChannelCost, ...]:
        """The parameters and MACs that the model loses if one channel of a group is removed, for each of `groups`.

        They are counted for the first channel of each group.

        >>> import torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> fxprune.analyze(net, torch.randn(1, 4)).cost_per_channel()  # a row of 4, a bias, a column of 2
        (ChannelCost(params=7, macs=6),)
        """
        return per_channel(self)

    def branches(self) -> tuple[Branch, ...]:
        """The residual branches that `drop` of `transform` can name, with parameters and MACs; see docs/depth.md.

        A branch that cannot be removed says why in `why_not`. Runs the model again, on fake tensors.

        >>> import torch, fxprune
        >>> class Block(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.f = torch.nn.Linear(4, 4)
        ...     def forward(self, x):
        ...         return x + self.f(x)
        >>> net = torch.nn.Sequential(Block(), torch.nn.Linear(4, 2))
        >>> [(branch.name, branch.params, branch.macs) for branch in fxprune.analyze(net, torch.randn(1, 4)).branches()]
        [('0.f', 20, 16)]
        """
        return find_branches(self._call).branches

    def _repr_html_(self) -> str:
        return analysis_table(analysis_data(self))

    @checks_arguments()
    def report(self, format: str = "text", *, plan: Plan | None = None, curves: Curves | None = None) -> str:
        """A report on groups, the cost of one channel of each, and locked channels with reasons: see docs/report.md.

        Args:
            format: "text", "markdown", "json", or "html", a page for a browser in one file.
            plan: for "html", shows what the plan would leave.
            curves: for "html", a result of `fxprune.sensitivity` or `fxprune.pareto`, or a list of them.

        Raises `InputError` for any other format, and `PlanError` if the plan is for another model.
        """
        if page_wanted(format, plan=plan, curves=curves):
            return analysis_page(self, plan, curves, None if plan is None else self._without_branches_of(plan))
        return view(analysis_data(self), format)

    @checks_arguments()
    def to_networkx(self, kind: str = "layers") -> Any:
        """The model as a graph of networkx.

        Args:
            kind: "layers" is a `DiGraph` of the modules that have parameters. An edge means that the output of one
                reaches the other without passing a third. "flow" is the same with inputs, outputs, and the operations
                at which branches meet. "groups" is a bipartite `MultiGraph` of groups and parameters. docs/report.md
                lists their attributes.

        Raises `InputError` for any other kind.

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


def _refuse_own_options(options: Mapping[str, Any]) -> None:
    """Raises `PlanError` for options that the analysis has already."""
    for name in options:
        if name in AnalyzeArguments.__dataclass_fields__:
            raise PlanError(
                f"the analysis has its own {name}",
                at=f"analysis.transform({name}={shown(options[name])})",
                do=f"pass {name} to fxprune.analyze, or call fxprune.transform",
            )


@checks_arguments("also", "methods", "strict")
@public_call_on_model
def analyze(
    model: nn.Module | ExportedProgram,
    example_inputs: Any,
    *,
    also: Sequence[Any] = (),
    methods: Mapping[str, Any] | None = None,
    strict: bool = False,
    path: str | None = None,
    prefer: str | None = None,
    norms: str | None = None,
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
        norms: the value that `transform` will get: "kept", which is the default, or "preserve". With "preserve", groups
            whose statistics can be preserved exactly count as exact. Plans of the analysis say "preserve" then.
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
    call = AnalyzeArguments(model, example_inputs, also, methods, strict, path, prefer, norms, outputs)
    found = find(call)
    parts = {part.name: getattr(found, part.name) for part in fields(found)}
    return Analysis(**parts, _call=call, _form=form_of(found.model))
