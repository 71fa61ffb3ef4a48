"""A request, carried out: the small model with its record, its warnings, its repair and those that follow it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from fxprune._attempt import Request, Result, with_norms_of_plan
from fxprune._data_options import DataOptions
from fxprune._drop import STANDS_IN, find_branches, without
from fxprune._dropping import Shallow, asked_to_drop, check_depth, counted_from_zero, shallow_of, without_branches
from fxprune._find import AnalyzeArguments, class_kept
from fxprune._first_result import WOULD_LOSE, first_result
from fxprune._follow import Holder, at_once, check_targets, holders_of, made, prepared_for, watch, watch_penalties
from fxprune._follow.result import Prepared
from fxprune._record import Record, attach, change_record, steps_in
from fxprune._recording import lost_hooks, wide_readings
from fxprune._recording import recorded as recorded_of
from fxprune._repair import RepairSettings, repaired, warn_of_outputs
from fxprune._search import (
    DepthRequest,
    chosen_branches,
    measure_of,
    samples_of,
    search_settings,
    searched,
)
from fxprune.analysis.adapters import idle_adapters
from fxprune.capture.captured import FrontEnd
from fxprune.capture.inputs import Inputs, normalize
from fxprune.capture.mode_layers import FIXED_MODE
from fxprune.capture.output_paths import narrowed, output_paths
from fxprune.capture.program import as_module, exported_again
from fxprune.capture.seeds import SETS_THE_STATE
from fxprune.capture.trace_watch import NOT_KEPT
from fxprune.configs.saving import guard
from fxprune.costs import Cost, cost_of
from fxprune.depth.numbering import LayersGone, name_before
from fxprune.depth.select import selected
from fxprune.errors import (
    AdapterLeftWarning,
    BudgetMissedWarning,
    ChannelsStayWarning,
    ClassLostWarning,
    FixedSizesWarning,
    NothingRemovedWarning,
    NotProvenWarning,
    PlanError,
    level_of_user,
)
from fxprune.fold import folds
from fxprune.offloaded import Dispatch, dispatch_of, is_dispatched
from fxprune.paths import PATHS, paths_for
from fxprune.planning.budgets import MISSED, above
from fxprune.planning.figures import TIMED, Measured, contradictions, pairs_of, with_measured
from fxprune.planning.plan import Plan
from fxprune.planning.uniform import by_config, class_paths
from fxprune.planning.without_effect import refuse_without_effect
from fxprune.rewrite.missing_graph import explain_missing_graph
from fxprune.rewrite.remade_tensors import unseen_writes
from fxprune.running.processes import Processes


def carry_out(request: Request, on: DataOptions) -> nn.Module | ExportedProgram:
    """The small model of a request, with its record. Warns in the name of the caller of a public function."""
    processes = Processes(on.process_group)
    request, contradiction = with_norms_of_plan(request)
    with processes.together():
        small, holders, changes = _carried_out(replace(request, processes=processes), on)
    with at_once():
        notes = (*contradiction, *made(changes))
    if notes:
        change_record(small, lambda known: replace(known, reasons=known.reasons + notes))
    if isinstance(small, nn.Module):
        watch(holders, small)
        if isinstance(request.call.model, nn.Module):
            watch_penalties(request.call.model, small)
    return small


def _carried_out(
    request: Request, on: DataOptions
) -> tuple[nn.Module | ExportedProgram, list[Holder], tuple[Prepared, ...]]:
    """The small model with its record, the optimizers of the model, and the changes of those that follow."""
    given, call, plan = request, class_kept(request.call), request.plan
    known = next(iter(request.known.values()), None)
    module = as_module(call.model, call.example_inputs) if known is None else known.model
    dispatch = _dispatch(call.model, on)
    check_targets(on.followers, module)
    _refuse_two_requests(plan, {**request.choices, "scores": on.scores})
    data = on.data is not None or not (on.repair is None or on.repair is False)
    deep = check_depth(request.choices, plan=plan is not None, data=data)
    shallow = without_branches(replace(call, model=module), plan, request.choices)
    choices = shallow.choices
    settings, holders = RepairSettings(on.repair_mode, progress=True), holders_of(module)
    search = search_settings(given.choices, on.search, on.repair)
    on = on.several_times() if deep or search is not None else on
    paths = _paths(module, call, choices, plan.path if isinstance(plan, Plan) else "")
    _refuse_folds(choices, paths)
    counting = narrowed(plan.outputs if isinstance(plan, Plan) else None, output_paths(call.outputs))
    free = plan is None and call.path is None and call.prefer is None and not isinstance(module, fx.GraphModule)
    free = free and not by_config(choices.get("uniform"))
    if deep:
        shallow = _deeper(replace(request, call=replace(call, model=module)), on, paths, settings, free)
        choices = shallow.choices
    example = normalize(call.example_inputs)
    importance, batches = on.read(shallow.model, example, choices.get("importance", "l2"), deep=deep)
    analysed = replace(call, model=shallow.model, outputs=None if counting is None else list(counting))
    seen = {} if shallow.dropped else request.known
    request = replace(request, call=analysed, choices={**choices, "importance": importance}, known=seen)
    if search is not None and choices.get("keep") is not None:
        data_of_search = on.search_data(shallow.model, example)
        request = searched(request, data_of_search, settings, search, module if shallow.dropped else None)
        assert request.plan is not None
        paths = _paths(module, call, choices, request.plan.path)
    result = shallow.added(first_result(request, paths, may_give_up_class=free))
    result, measured = _measured(result, module, call.example_inputs, given.choices, shallow)
    missed = _above_budget(result, given.choices, measured, shallow.before)
    for text, kind in chain(_warnings(result, free=free, asked=call.prefer == "class"), missed):
        warnings.warn(text, kind, stacklevel=level_of_user())
    recorded = shallow.recorded(replace(recorded_of(result), measured=measured))
    if batches is not None:
        result, recorded = _repaired(result, module, batches, recorded, settings, request.processes)
    result, recorded = _as_config_says(result, recorded, request)
    small: Any = _as_given(call, result, dispatch, recorded.layers_gone)
    if given.call.path is None and given.call.prefer is None and not isinstance(call.model, ExportedProgram):
        explain_missing_graph(result.small)
    attach(small, recorded, after=steps_in(module))
    guard(small, module)
    return small, holders, prepared_for(on.followers, module, small)


def _dispatch(model: Any, on: DataOptions) -> Dispatch | None:
    """The hooks of a model that accelerate has dispatched, None for any other. Raises `PlanError` for followers."""
    if not is_dispatched(model):
        return None
    if on.followers:
        raise PlanError(
            "an optimizer or an average of a dispatched model cannot follow",
            at="optimizer=" if on.optimizer is not None else "ema=",
            why="accelerate makes new parameters in each forward, so that an optimizer holds old ones",
            do="make the optimizer of the small model, or prune before the model is dispatched",
        )
    return dispatch_of(model)


def _paths(module: nn.Module, call: AnalyzeArguments, choices: Mapping[str, Any], made_on: str) -> Sequence[FrontEnd]:
    """The paths to try, in order. made_on: the name of the path of a plan, "" without one."""
    paths = paths_for(module, call.path, call.prefer, made_on=made_on)
    return class_paths(paths) if by_config(choices.get("uniform")) else paths


def _refuse_folds(choices: Mapping[str, Any], paths: Sequence[FrontEnd]) -> None:
    """Raises `PlanError` for constants that would be folded on the path that puts zeros back."""
    if folds(choices.get("bias"), choices.get("masks")) and all(front_end.needs_hooks for front_end in paths):
        raise PlanError("constants cannot be folded behind hooks", why="they put zeros back", do="take another path")


def _deeper(
    request: Request, on: DataOptions, paths: Sequence[FrontEnd], settings: RepairSettings, free: bool
) -> Shallow:
    """The model without the branches that are named and those that go within the budget. request: with the original."""
    call, choices = request.call, request.choices
    example, found = normalize(call.example_inputs), find_branches(call)
    named = selected(found.model, found.branches, choices["drop"]) if asked_to_drop(choices) else ()
    data = on.search_data(found.model, example)
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
        repairs=not (on.repair is None or on.repair is False),
        free=free,
        file=(on.search or {}).get("file"),
    )
    chosen, text = chosen_branches(asked)
    if not chosen:
        return Shallow(found.model, options, found.model, reasons=(text,))
    made = without(found, chosen)
    return shallow_of(found, replace(made, reasons=(*made.reasons, text)), options, call.example_inputs)


def _as_config_says(result: Result, recorded: Record, request: Request) -> tuple[Result, Record]:
    """The result and its record, without the layers that are gone whole where the config has to say so."""
    if not (result.plan.dropped and by_config(request.choices.get("uniform"))):
        return result, recorded
    made, gone = counted_from_zero(result.small, request.call)
    reasons = tuple(text for text in recorded.reasons if not text.startswith(STANDS_IN))
    return replace(result, small=made), replace(recorded, layers_gone=gone, reasons=reasons)


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
    warn_of_outputs(done)
    return replace(result, small=small), replace(recorded, repair=done)


def _measured(
    result: Result, model: nn.Module, example_inputs: Any, choices: Mapping[str, Any], shallow: Shallow
) -> tuple[Result, Measured]:
    """The figures that budgets limit, measured; the result says where they contradict the table of latencies."""
    keep = choices.get("keep")
    measured = {} if keep is None else pairs_of(model, result.small, example_inputs, keep)
    if shallow.dropped:  # the table is about the model without these branches
        return result, measured
    told = contradictions(result.analysis, result.removal, measured, choices.get("latency_table"))
    return replace(result, plan=replace(result.plan, reasons=(*result.plan.reasons, *told))), measured


def _above_budget(
    result: Result, choices: Mapping[str, Any], measured: Measured, whole: Cost | None
) -> Iterator[tuple[str, type[Warning]]]:
    """The warnings about budgets that the small model does not meet. whole: the cost of a model with more branches."""
    keep = choices.get("keep")
    if keep is not None:
        made = cost_of(result.analysis, result.removal, result.constants)
        before, after = with_measured((whole or cost_of(result.analysis), made), measured)
        for budget in above(before, after, keep):
            text, reasons = budget.missed(budget.of(after)), result.plan.reasons
            known = next((reason for reason in reasons if reason.startswith(text)), None)
            others = "; ".join(reason for reason in reasons if not reason.startswith(MISSED))
            do = "Raise the budget, or let more go: record(small).report() says what stays, and why"
            if budget.key in TIMED and choices.get("latency_table") is False:
                do += ". Times are of this moment: on an idle machine the same call may fit"
            elif budget.key in TIMED:
                do += ". latency_table=False measures again, without the table of latencies"
            yield known or f"{text}: {others or 'no more may go'}. {do}", BudgetMissedWarning


def _refuse_two_requests(plan: Plan | None, choices: Mapping[str, Any]) -> None:
    asked = ("ratio", "masks", "bias", "keep", "counts", "scores")
    given = [name for name in asked if choices.get(name) is not None]
    given += [name for name, asked in (("drop", asked_to_drop(choices)), ("depth", choices.get("depth"))) if asked]
    if plan is not None and given:
        raise PlanError("a plan says already what goes", why=f"given too: {', '.join(given)}", do="pass the plan alone")
    if plan is not None:
        refuse_without_effect(choices, plan=True)


def _as_given(
    call: AnalyzeArguments, result: Result, dispatch: Dispatch | None, layers_gone: LayersGone
) -> nn.Module | ExportedProgram:
    """The small model; a program if the model is one, with the hooks of accelerate if the model has them."""
    if isinstance(call.model, ExportedProgram):
        return exported_again(call.model, result.small, call.example_inputs)
    if dispatch is not None:
        dispatch.again(result.small, lambda path: name_before(path, layers_gone))
    return result.small


def _warnings_of_hooks(result: Result) -> Iterator[tuple[str, type[Warning]]]:
    """The warnings about hooks of parameters that the small model lacks, or that will fail in it."""
    lost = lost_hooks(result)
    names = list(dict.fromkeys(f'"{name}"' for name, _ in lost))
    if names:
        listed = ", ".join(names[:4]) + (", ..." if names[4:] else "")
        more = "; record(small).reasons names all" if lost[1:] else ""
        yield f"hooks are not on the new parameters of {listed}: register them again. {lost[0][1]}{more}", UserWarning
    wide = wide_readings(result)
    if wide:
        do = "give it the kept part (record(small).removed has the slots that went)"
        kinds = "a mask in an attribute that is no buffer is cut with the parameter of its shape"
        yield f"{'; '.join(wide[:4])}{'; ...' if wide[4:] else ''}: {do}; {kinds}", UserWarning


def _warning_of_mode(result: Result) -> Iterator[tuple[str, type[Warning]]]:
    """The warning about a graph that is the same in training and evaluation mode, where the model is not."""
    for note in (note for note in result.analysis.notes if note.startswith(FIXED_MODE)):
        other = "eval" if result.analysis.model.training else "train"
        do = f"For a graph of the other mode call `model.{other}()` first"
        if not any(PATHS[name].keeps_class for name in result.why_not):
            do = f'With `prefer="class"` the small model has both modes. {do}'
        yield f"{note}, and `train()` and `eval()` of the small model change nothing. {do}", ClassLostWarning


def _warnings(result: Result, *, free: bool, asked: bool) -> Iterator[tuple[str, type[Warning]]]:
    """The warnings about a result: their texts and categories.

    free: True if nothing was said of the path. asked: True if the class was asked for by `prefer`.
    """
    if result.several:
        yield result.several, UserWarning
    captured = result.analysis.captured
    if (free or asked) and captured.has_graph and not isinstance(result.analysis.model, fx.GraphModule):
        why = next(iter(result.why_not.values()), "")
        although = ', although `prefer="class"` asks for one' if asked else ""
        text = f"the result is a graph, no {type(result.analysis.model).__name__}{although}: {why}"
        do = 'With `prefer="class"` the class stays, and so do the channels that it cannot express'
        if not why.startswith(WOULD_LOSE):  # the class was tried, and failed
            do = 'Mend what the class fails by; `path="eager"` raises instead of giving a graph'
        lost = "".join(f"; {note}" for note in captured.notes if note.startswith(NOT_KEPT))
        yield f"{text}{lost}. {do}", ClassLostWarning
    elif captured.has_graph:
        for note in (note for note in captured.notes if note.startswith(NOT_KEPT) and SETS_THE_STATE in note):
            yield f'{note}. With `prefer="class"` the small model does it too', ClassLostWarning
    if result.more_by_graph:
        why = f"{result.more_by_graph}, so the result is a {type(result.analysis.model).__name__}"
        yield f'{why}; pass `prefer="graph"` for the graph', ChannelsStayWarning
    yield from _warning_of_mode(result)
    yield from _warnings_of_hooks(result)
    if not result.plan:
        reasons = dict.fromkeys(MISSED if text.startswith(MISSED) else text for text in result.plan.reasons)
        why = "; ".join(reasons) or "the plan is empty"
        do = ". The report of fxprune.analyze (fxprune inspect) lists what can go, and what holds the rest"
        yield f"nothing was removed: {why}{'' if why == MISSED or ': holds ' in why else do}", NothingRemovedWarning
    if result.proof is not None and result.proof.blind:
        yield result.proof.blind, UserWarning
    if result.unproven:
        do = "Compare it with the original on your own data before it is used"
        yield f"the small model is not proven: {result.unproven}. {do}", NotProvenWarning
    elif result.proof is not None and result.plan.removed and not result.proof.compared:
        why = "no number other than 0 that depends on what was removed was compared; give inputs on which there is one"
        yield f"the proof is empty: {why}", NotProvenWarning
    for name, layers in idle_adapters(result.analysis.model, result.plan.removed).items():
        yield (
            f'the adapter "{name}" keeps its widths in {len(layers)} layers that got smaller, as "{layers[0]}", since '
            "forward does not use it, and fits them no longer. Before pruning activate all adapters, by "
            "`model.base_model.set_adapter([...])`, unmerge them, or delete it",
            AdapterLeftWarning,
        )
    if captured.fixed:
        sizes = "; ".join(captured.fixed)
        text = f"the small model is an exported graph, which raises for sizes that the original takes: {sizes}"
        text += '. Pass `prefer="class"` for a model that takes them'
        yield text, FixedSizesWarning
    unseen = unseen_writes(result.analysis, result.removal)
    if unseen:
        more = f", as do {len(unseen) - 1} more (record(small).reasons)" if unseen[1:] else ""
        yield f"{unseen[0]}{more}. Pass `also=` inputs for which it does, such as longer ones", FixedSizesWarning
