"""`transform`, and the record that a small model gets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar, cast

from torch import fx, nn
from torch.export import ExportedProgram
from torch.optim import Optimizer

from fxprune._attempt import Request, Result
from fxprune._drop import find_branches, without
from fxprune._dropping import Shallow, asked_to_drop, check_depth, shallow_of, without_branches
from fxprune._find import AnalyzeArguments
from fxprune._first_result import first_result
from fxprune._follow import listed, made, optimizers_of, prepared_for, watch
from fxprune._follow.result import Prepared
from fxprune._record import Record, attach, checksum, record
from fxprune._repair import RepairSettings, repaired
from fxprune._search import (
    DepthRequest,
    SearchData,
    chosen_branches,
    measure_of,
    samples_of,
    search_settings,
    searched,
)
from fxprune.arguments import checks_arguments
from fxprune.capture.captured import FrontEnd
from fxprune.capture.inputs import Inputs, normalize
from fxprune.capture.output_paths import narrowed, output_paths
from fxprune.capture.process_state import public_call
from fxprune.capture.program import as_module, exported_again
from fxprune.capture.tensors import PARAMETER, Tensors
from fxprune.configs.saving import guard
from fxprune.costs import Cost, cost_of, measured_in_turn, peak_memory
from fxprune.criteria import Importance
from fxprune.criteria.from_data import on_data
from fxprune.criteria.losses import Loss
from fxprune.depth.select import selected
from fxprune.errors import (
    BudgetMissedWarning,
    ClassLostWarning,
    FixedSizesWarning,
    NothingRemovedWarning,
    NotProvenWarning,
    PlanError,
    level_of_user,
)
from fxprune.files import PathLike
from fxprune.fold import folds
from fxprune.paths import paths_for
from fxprune.planning.budgets import MISSED, above
from fxprune.planning.figures import Measured, with_measured
from fxprune.planning.plan import Plan
from fxprune.planning.structure import structure_of
from fxprune.planning.uniform import by_config, class_paths
from fxprune.planning.without_effect import refuse_without_effect
from fxprune.rewrite.derived import derived
from fxprune.rewrite.missing_graph import explain_missing_graph
from fxprune.rewrite.references import names_in, references_to_original
from fxprune.rewrite.tensor_hooks import left_out
from fxprune.running.inputs import all_batches, inputs_like, inputs_of
from fxprune.running.processes import Processes

ModelT = TypeVar("ModelT", nn.Module, ExportedProgram)


@checks_arguments("also", "methods", "counts", "exact", "strict", "verify", "repair_mode")
@public_call()
def transform(
    model: ModelT,
    example_inputs: Any,
    *,
    plan: Plan | None = None,
    ratio: float | Mapping[str, float] | None = None,
    masks: Mapping[str, Any] | str | None = None,
    bias: str | None = None,
    border: str = "carrier",
    importance: Importance = "l2",
    ignore: Any = (),
    round_to: int | str = 1,
    exact: bool = False,
    seed: int | None = None,
    also: Sequence[Any] = (),
    methods: Mapping[str, Any] | None = None,
    strict: bool = False,
    verify: bool = True,
    path: str | None = None,
    prefer: str | None = None,
    norms: str = "kept",
    outputs: Any = None,
    keep: Mapping[str, Any] | None = None,
    scope: str = "local",
    counts: Mapping[Any, int] | None = None,
    uniform: Any = (),
    min_channels: int = 1,
    max_ratio: float | None = None,
    latency_table: PathLike | bool | None = None,
    drop: Any = (),
    depth: bool = False,
    data: Iterable[Any] | None = None,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    scores: Any = None,
    repair: Iterable[Any] | bool | None = None,
    repair_mode: str = "weights",
    repair_inputs: Callable[[Any], Any] | None = None,
    optimizer: Any = None,
    ema: Any = None,
    search: Mapping[str, Any] | None = None,
    process_group: Any = None,
) -> ModelT:
    """A smaller model, which computes what the original would compute if the removed channels had never existed.

    The original is not changed. The result has the same parameter names, dtypes, devices, `requires_grad` flags and
    train/eval modes; shared parameters stay shared. There are four paths, tried in this order:

    - "eager": the result has the model's own class, with smaller parameters and recounted attributes;
    - "fx": the result is a `torch.fx.GraphModule`, made by symbolic tracing;
    - "export": the result is a `GraphModule` of ATen operations, made by `torch.export`;
    - "hooks": the result has the model's own class. Forward hooks fill up the outputs of smaller layers with zeros.

    A `GraphModule` comes back as a `GraphModule`, a program of `torch.export` as a program with the same open sizes.
    Any other model comes back as its own class, if that can be proven right. Channels that its forward cannot run
    without are kept, and `record(small).reasons` names them. If the class would lose less than nine tenths of the
    parameters that a graph would lose, the result is a graph, and a `ClassLostWarning` says why. `record(small).path`
    names the path, and `record(small).why_not` says why the paths before it were not taken.

    Args:
        model: any module, a traced `torch.fx.GraphModule`, or a `torch.export.ExportedProgram`.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        plan: the channels to remove, made by `analysis.plan(...)` or loaded from a file. The path that it was made on
            is tried first. Without a plan, the next arguments say how to make one:
        keep: the cost that stays, such as {"macs": 0.5}: the result is within it, and near it.
        ratio, masks, importance, ignore, round_to, exact, seed: see `fxprune.planning.choose.choose`.
        scope, counts, uniform, min_channels, max_ratio, latency_table: see there too, where more is said of `keep`.
            With uniform="config" only what the config of a Hugging Face model can say is removed, and that of the
            result says it, so that `from_pretrained` loads it (see docs/transformers.md); `plan` may be given with it.
        bias: "prune" removes everything that belongs to a channel. "fold" removes its weights only. What the channel
            computes without them is a constant (from its bias, the shift of a norm, an activation at zero), which is
            folded exactly into the layers that read it. If that is not possible, the channel stays. The default is
            "fold" for masks="zeros", else "prune". masks="zeros" with "fold" removes all channels that are constant for
            every input or have no influence, so that the result computes the same function as the original.
        border: how to fold a constant into a layer that pads with zeros, where its effect is different near the border.
            "carrier" keeps one of the constant channels, and folds the others into it. "map" adds a map of constants to
            the result of the layer. The map has out_channels x height x width numbers, works only for inputs of the
            example's height and width, and needs a graph.
        also: a list of further example inputs, for a forward that runs other code on them. Channels that are locked or
            tied on one of the inputs are so in the result.
        methods: name of another method -> the example inputs of one call of it, given as `example_inputs`: {"encode":
            x, "decoder.step": (x, 3)}. These methods are analysed, cut and compared like forward; what they return
            keeps its shape. Each runs on a copy of its own, on which nothing ran before. Only a result that keeps its
            class has methods, so no graph is made then.
        strict: raise `RuleError` at an operation without a rule, instead of keeping the channels that enter it.
        verify: compare the result with its reference in float64, if the weights have values (see `fxprune.proof`).
            Shapes are always proven. A forward that depends on the numbers in its tensors is always compared, because
            its shapes cannot be proven.
        path: the name of the only path to try.
        prefer: "class" keeps the model's class wherever that is possible, whatever it costs. "graph" gives a graph.
        norms: "kept" takes statistics over the kept channels. "preserve" makes statistics count the original width
            wherever that is exactly possible: layer norms, RMS norms, and means over values that are zero at removed
            channels. The result then equals the masked original there, and such groups are exact.
        outputs: the parts of the forward's result that count. A part is given by its path: the number of an element
            (`0`), the key of a dict or the name of a field (`"boxes"`), or a tuple of such keys (`("features", 0)`); a
            list has several paths. Only these parts keep their shape and are compared. The others may lose channels:
            the record names them, with their new shapes. By default all parts count. A plan says which ones count for
            it; `outputs` may then name some of these.
        drop: a pattern or several that name residual branches, which go whole: f(x) in x + f(x). A branch has the name
            of its layer or of the block around its layers, such as "layer3.1" or "encoder.layer.4.attention"; a block
            names all branches in it. What keep, ratio and the other options ask for is then asked of the rest; a budget
            counts from the original. See docs/depth.md.
        depth: True to let residual branches go where a budget is met better so: small models without some are made,
            repaired and measured, and the best one says which go. Needs `keep`, and `repair` or `data`.
        data: batches for an importance that is measured, such as "taylor", and for `repair=True`: in the form of the
            example inputs, or tuples of these and labels.
        loss: a function from the model and a batch of the data to a scalar, for an importance that needs gradients:
            `lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])`.
        scores: instead of an importance, scores that `analysis.scores` has measured, or the name of their file.
        repair: batches of inputs, some hundred samples without labels, on which the result is repaired after its proof:
            its layers compute again what they computed in the original. True takes those of `data`. See
            `fxprune.repair`, which has more options.
        repair_mode, repair_inputs: `mode` and `inputs` of `fxprune.repair`. The latter is for `data` too, unless
            `repair` gives others.
        optimizer, ema: an optimizer of the model, and an averaged model of it, or lists of them. They are changed in
            place, last of all, and go on with the result: see `fxprune.follow`.
        search: the settings of scope="search": "steps", the number of small models to measure; "file", a JSON file from
            which a run that was killed goes on; "progress", True for a bar; "score", a function from a model to a
            number of which more is better. See docs/searching.md.
        process_group: a group of `torch.distributed`, whose processes have the same model, and some of the batches of
            `data` and `repair` each. All of them get the model that one process gets from all batches; if one raises,
            or if their plans differ, all raise.

    Raises a subclass of `FxpruneError`, which says what to do. Warns with `NothingRemovedWarning`, which says why, if
    nothing could be removed; with `BudgetMissedWarning` if the result costs more than `keep`; with `NotProvenWarning`
    if the result could not be compared with its reference, or nothing that depends on what was removed was compared;
    with `FixedSizesWarning` if the result is an exported graph that takes fewer sizes of inputs than the original.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 3))
    >>> small = fxprune.transform(net.eval(), torch.randn(1, 3, 8, 8), ratio=0.5)
    >>> small.get_submodule("0"), small.get_submodule("1").num_features
    (Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1)), 4)
    """
    call = AnalyzeArguments(model, example_inputs, also, methods, strict, path, prefer, norms, outputs)
    choices: dict[str, Any] = {"ratio": ratio, "masks": masks, "bias": bias, "border": border, "ignore": ignore}
    choices |= {"importance": importance, "round_to": round_to, "exact": exact, "seed": seed, "keep": keep}
    choices |= {"scope": scope, "counts": counts, "min_channels": min_channels, "max_ratio": max_ratio}
    choices |= {"uniform": uniform, "latency_table": latency_table, "drop": drop, "depth": depth}
    on = DataOptions(data, loss, scores, repair, repair_mode, repair_inputs, optimizer, ema, search, process_group)
    return cast(ModelT, carry_out(Request(call, plan, choices, verify), on))


@dataclass(frozen=True, eq=False)
class DataOptions:
    """The arguments of `transform` about data and training, under their names there."""

    data: Iterable[Any] | None = None
    loss: Loss | None = None
    scores: Any = None
    repair: Iterable[Any] | bool | None = None
    repair_mode: str = "weights"
    repair_inputs: Callable[[Any], Any] | None = None
    optimizer: Any = None
    ema: Any = None
    search: Mapping[str, Any] | None = None
    process_group: Any = None

    @property
    def followers(self) -> list[Any]:
        """The optimizers and averaged models that follow."""
        return [*listed(self.optimizer), *listed(self.ema)]

    def several_times(self) -> DataOptions:
        """The options with batches that can be read several times."""
        data = list(self.data) if isinstance(self.data, Iterator) else self.data
        return replace(self, data=data, repair=list(self.repair) if isinstance(self.repair, Iterator) else self.repair)

    def search_data(self, example: Inputs) -> SearchData:
        """The data of a search. Those of `data` have labels for the loss."""
        pick = self.repair_inputs or inputs_like(example)
        labelled = self.repair is True or self.repair is None or self.repair is False
        return SearchData(self.data, pick, self.loss) if labelled else SearchData(self.repair, pick)

    def read(
        self, model: nn.Module, example: Inputs, importance: Importance, *, deep: bool = False
    ) -> tuple[Importance, list[Inputs] | None]:
        """The importance, measured if it needs data, and the inputs to repair on, None for no repair.

        deep: True if branches are chosen on the data.
        """
        data, pick = self.data, self.repair_inputs
        if self.repair is None or self.repair is False:
            picked = pick is not None and data is None  # an importance may be measured on what it picks
            for name, given in (("repair_mode", self.repair_mode != "weights"), ("repair_inputs", picked)):
                if given:
                    why = "nothing is repaired"
                    raise PlanError(
                        f"{name} is without effect here", why=why, do="pass repair=batches, or leave it out"
                    )
        if self.repair is True:
            if data is None:
                raise PlanError(
                    "there is no data to repair on", why="repair=True takes those of `data`", do="pass data=batches"
                )
            data = all_batches(data)  # it is read twice
            pick = pick or inputs_like(example)
        repair = data if self.repair is True else self.repair
        batches = None if repair is None or repair is False else inputs_of(model, repair, pick)
        made = on_data(
            importance,
            model,
            example,
            data=data,
            loss=self.loss,
            scores=self.scores,
            pick=pick if batches is None or self.repair is True else None,
            used_elsewhere=self.repair is True or deep,
            process_group=self.process_group,
        )
        return made, batches


def carry_out(request: Request, on: DataOptions) -> nn.Module | ExportedProgram:
    """The small model of a request, with its record. Warns in the name of the caller of a public function."""
    processes = Processes(on.process_group)
    with processes.together():
        small, optimizers, changes = _carried_out(replace(request, processes=processes), on)
    if notes := made(changes):
        known = record(small)
        attach(small, replace(known, reasons=known.reasons + notes))
    if isinstance(small, nn.Module):
        watch(optimizers, small, told=on.followers)
    return small


def _carried_out(
    request: Request, on: DataOptions
) -> tuple[nn.Module | ExportedProgram, list[Optimizer], tuple[Prepared, ...]]:
    """The small model with its record, the optimizers of the model, and the changes of those that follow."""
    given, call, plan = request, request.call, request.plan
    known = next(iter(request.known.values()), None)
    module = as_module(call.model, call.example_inputs) if known is None else known.model
    _refuse_two_requests(plan, {**request.choices, "scores": on.scores})
    data = on.data is not None or on.repair not in (None, False)
    deep = check_depth(request.choices, plan=plan is not None, data=data)
    shallow = without_branches(replace(call, model=module), plan, request.choices)
    choices = shallow.choices
    settings, optimizers = RepairSettings(on.repair_mode), optimizers_of(module)
    search = search_settings(given.choices, on.search, on.repair)
    on = on.several_times() if deep or search is not None else on
    paths = _paths(module, call, choices, plan.path if isinstance(plan, Plan) else "")
    if folds(choices.get("bias"), choices.get("masks")) and all(front_end.needs_hooks for front_end in paths):
        raise PlanError("constants cannot be folded behind hooks", why="they put zeros back", do="take another path")
    counting = narrowed(plan.outputs if isinstance(plan, Plan) else None, output_paths(call.outputs))
    free = plan is None and call.path is None and call.prefer is None and not isinstance(module, fx.GraphModule)
    free = free and not by_config(choices.get("uniform"))
    if deep:
        shallow = _deeper(replace(request, call=replace(call, model=module)), on, paths, settings, free)
        choices = shallow.choices
    example, ranking = normalize(call.example_inputs), choices.get("importance", "l2")
    importance, batches = on.read(shallow.model, example, ranking, deep=deep)
    analysed = replace(call, model=shallow.model, outputs=None if counting is None else list(counting))
    request = replace(request, call=analysed, choices={**choices, "importance": importance})
    if shallow.dropped:
        request = replace(request, known={})
    if search is not None and choices.get("keep") is not None:
        request = searched(request, on.search_data(example), settings, search, module if shallow.dropped else None)
        assert request.plan is not None
        paths = _paths(module, call, choices, request.plan.path)
    result = shallow.added(first_result(request, paths, may_give_up_class=free))
    keep = given.choices.get("keep")
    measured = {} if keep is None else _measured(result, module, call.example_inputs, keep)
    missed = _above_budget(result, keep, measured, shallow.before)
    for text, kind in chain(_warnings(result, class_expected=free), missed):
        warnings.warn(text, kind, stacklevel=level_of_user())
    recorded = shallow.recorded(replace(_recorded(result), measured=measured))
    if batches is not None:
        result, recorded = _repaired(result, module, batches, recorded, settings, request.processes)
    small: Any = _as_given(call.model, result, call.example_inputs)
    if call.path is None and call.prefer is None and not isinstance(call.model, ExportedProgram):
        explain_missing_graph(result.small)
    attach(small, recorded)
    guard(small, module)
    return small, optimizers, prepared_for(on.followers, module, small)


def _paths(module: nn.Module, call: AnalyzeArguments, choices: Mapping[str, Any], made_on: str) -> Sequence[FrontEnd]:
    """The paths to try, in order. made_on: the name of the path of a plan, "" without one."""
    paths = paths_for(module, call.path, call.prefer, made_on=made_on)
    return class_paths(paths) if by_config(choices.get("uniform")) else paths


def _deeper(
    request: Request, on: DataOptions, paths: Sequence[FrontEnd], settings: RepairSettings, free: bool
) -> Shallow:
    """The model without the branches that are named and those that go within the budget. request: with the original."""
    call, choices = request.call, request.choices
    example, found = normalize(call.example_inputs), find_branches(call)
    named = selected(found.model, found.branches, choices["drop"]) if asked_to_drop(choices) else ()
    data = on.search_data(example)
    samples = samples_of(found.model, data.batches, data.pick, judge=True)
    importance = choices.get("importance", "l2")
    options = {name: value for name, value in choices.items() if name not in ("drop", "depth")}
    asked = DepthRequest(
        found,
        named,
        replace(request, choices=options),
        paths,
        lambda model: on.read(model, example, importance, deep=True)[0],
        samples,
        measure_of(found.model, samples, (on.search or {}).get("score"), data.loss),
        settings,
        repairs=on.repair not in (None, False),
        free=free,
    )
    chosen, text = chosen_branches(asked)
    if not chosen:
        return Shallow(found.model, options, found.model, reasons=(text,))
    made = without(found, chosen)
    return shallow_of(found, replace(made, reasons=(*made.reasons, text)), options, call.example_inputs)


def _repaired(
    result: Result,
    model: nn.Module,
    batches: Sequence[Inputs],
    recorded: Record,
    settings: RepairSettings,
    processes: Processes,
) -> tuple[Result, Record]:
    """The result with a repaired model, and its record. model: the original."""
    small, done = repaired(result.small, model, batches, recorded.plan, settings, processes)
    return replace(result, small=small), replace(recorded, repair=done)


def _measured(result: Result, model: nn.Module, example_inputs: Any, keep: Mapping[str, Any]) -> Measured:
    """The figures of the original and of the small model that no `Cost` has, among those that a budget limits."""
    found: Measured = {}
    if "memory" in keep:
        found["memory"] = peak_memory(model, example_inputs), peak_memory(result.small, example_inputs)
    if "latency" in keep:
        before, after = measured_in_turn([model, result.small], example_inputs, rounds=10)
        found["latency"] = before.seconds, after.seconds
    return found


def _above_budget(
    result: Result, keep: Mapping[str, Any] | None, measured: Measured, whole: Cost | None
) -> Iterator[tuple[str, type[Warning]]]:
    """The warnings about budgets that the small model does not meet. whole: the cost of a model with more branches."""
    if keep is not None:
        made = cost_of(result.analysis, result.removal, result.constants)
        before, after = with_measured((whole or cost_of(result.analysis), made), measured)
        for budget in above(before, after, keep):
            text, reasons = budget.missed(budget.of(after)), result.plan.reasons
            known = next((reason for reason in reasons if reason.startswith(text)), None)
            others = "; ".join(reason for reason in reasons if not reason.startswith(MISSED))
            yield known or f"{text}: {others or 'no more may go'}", BudgetMissedWarning


def _refuse_two_requests(plan: Plan | None, choices: Mapping[str, Any]) -> None:
    asked = ("ratio", "masks", "bias", "keep", "counts", "scores")
    given = [name for name in asked if choices.get(name) is not None]
    given += [name for name, asked in (("drop", asked_to_drop(choices)), ("depth", choices.get("depth"))) if asked]
    if plan is not None and given:
        raise PlanError("a plan says already what goes", why=f"given too: {', '.join(given)}", do="pass the plan alone")
    if plan is not None:
        refuse_without_effect(choices, plan=True)


def _as_given(model: Any, result: Result, example_inputs: Any) -> nn.Module | ExportedProgram:
    """The small model; a program if the model is one."""
    if isinstance(model, ExportedProgram):
        return exported_again(model, result.small, example_inputs)
    return result.small


def _warnings(result: Result, *, class_expected: bool) -> Iterator[tuple[str, type[Warning]]]:
    """The warnings about a result: their texts and categories."""
    captured = result.analysis.captured
    if class_expected and captured.has_graph:
        why = next(iter(result.why_not.values()), "")
        yield f"the result is a graph, no {type(result.analysis.model).__name__}: {why}", ClassLostWarning
    if not result.plan:
        reasons = dict.fromkeys(MISSED if text.startswith(MISSED) else text for text in result.plan.reasons)
        why = "; ".join(reasons) or "the plan is empty"
        yield f"nothing was removed: {why}", NothingRemovedWarning
    if result.unproven:
        yield f"the small model is not proven: {result.unproven}", NotProvenWarning
    elif result.proof is not None and result.plan.removed and not result.proof.compared:
        why = "no number that depends on what was removed was compared; give inputs on which there is one"
        yield f"the proof is empty: {why}", NotProvenWarning
    if captured.fixed:
        sizes = "; ".join(captured.fixed)
        text = f"the small model is an exported graph, which raises for sizes that the original takes: {sizes}"
        yield text, FixedSizesWarning


def _recorded(result: Result) -> Record:
    analysis, small, plan = result.analysis, result.small, result.plan
    reasons = [*plan.reasons, *analysis.notes, *result.recounted]
    inexact = analysis.inexact & result.removal.removed
    if inexact.any():
        changed = dict.fromkeys(
            f"{event.op} in {event.module or 'the model'}: {event.why}"
            for event in analysis.marked_by(inexact.nonzero()[0])
        )
        reasons += [f"a statistic changed: {text}" for text in changed]
    reasons += analysis.results.changes(result.removal)
    state = Tensors.of(small)
    if plan.factors:
        names = list(dict.fromkeys(factor.tensor for factor in plan.factors))
        dtypes = ", ".join(dict.fromkeys(str(state[name].dtype) for name in names if name in state))
        reasons.append(
            f"the code computes a scale from a smaller width: {', '.join(names[:4])}{', ...' if names[4:] else ''} "
            f"carry the ratio to the scale of before, rounded to {dtypes} (see `plan.factors`)"
        )
    before = {name: tuple(tensor.shape) for key, tensor in analysis.tensors.items() for name in analysis.names_of(key)}
    absent = [name for name in analysis.subject.tensors.names(PARAMETER) if name not in state]
    if absent:
        mode = "training" if analysis.model.training else "evaluation"
        listed = ", ".join(absent[:4]) + (", ..." if len(absent) > 4 else "")
        reasons.append(f"left out, because the forward does not use them in {mode} mode: {listed}")
    known = names_in(analysis.model, analysis.subject.tensors)
    reasons += references_to_original(known, small) + left_out(analysis.tensors, known, state)
    after = {name: tuple(t.shape) for name, t in state.items() if name in before}
    training = tuple(name for name, module in analysis.model.named_modules() if module.training)
    return Record(
        analysis.captured.path,
        plan.removed,
        not inexact.any(),
        before,
        after,
        tuple(reasons),
        training,
        None if result.proof is None else result.proof.error,
        result.why_not,
        "kept" if analysis.preserved is None else "preserve",
        _complete(result),
        (cost_of(analysis), cost_of(analysis, result.removal, result.constants)),
        None if result.proof is None else result.proof.compared,
        () if result.proof is None else result.proof.one_sided,
        tuple(call.name for call in analysis.subject.methods),
        weights=checksum(small),
    )


def _complete(result: Result) -> Plan:
    """The plan with everything that is known after the rewrite: recounted sizes, structure and path."""
    analysis, small, plan = result.analysis, result.small, result.plan
    structure, path = plan.structure, analysis.captured.path
    if structure is None or not structure.coupled:
        structure = structure_of(analysis, result.removal.removed, plan.removed)
    return replace(plan, sizes=derived(analysis, small), structure=structure, path=path, outputs=analysis.results.paths)
