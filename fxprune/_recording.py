"""The record of a small model."""

from __future__ import annotations

from dataclasses import replace

from fxprune._attempt import Result
from fxprune._record import Record, checksum
from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Mark
from fxprune.capture.references import names_in, references_to_original
from fxprune.capture.tensors import PARAMETER, Tensors
from fxprune.costs import cost_of
from fxprune.planning.plan import Plan
from fxprune.planning.structure import structure_of
from fxprune.report.layer_graph import flow_of
from fxprune.report.repeats import merge_tensors
from fxprune.rewrite.derived import derived
from fxprune.rewrite.hook_readings import too_wide
from fxprune.rewrite.norms import rescaled_layers, why_changed
from fxprune.rewrite.own_copies import copies_that_differ
from fxprune.rewrite.remade_tensors import unseen_writes
from fxprune.rewrite.tensor_hooks import carried, hooks_of, left_out
from fxprune.rewrite.unread_tensors import unread_tensors


def recorded(result: Result) -> Record:
    """The record of a small model."""
    analysis, small, plan = result.analysis, result.small, result.plan
    reasons = [*plan.reasons, *analysis.notes, *result.recounted]
    inexact = analysis.inexact & result.removal.removed
    if inexact.any():
        reasons += _changed_statistics(analysis, list(analysis.marks_of(inexact.nonzero()[0])))
    reasons += analysis.results.changes(result.removal)
    reasons += _rescaled_norms(result)
    state = Tensors.of(small)
    if plan.factors:
        names = list(dict.fromkeys(factor.tensor for factor in plan.factors))
        folded = merge_tensors(names)
        dtypes = ", ".join(dict.fromkeys(str(state[name].dtype) for name in names if name in state))
        reasons.append(
            f"the code computes a scale from a smaller width: {', '.join(folded[:4])}{', ...' if folded[4:] else ''} "
            f"carry the ratio to the scale of before, rounded to {dtypes} (see `plan.factors`)"
        )
    before = {name: tuple(tensor.shape) for key, tensor in analysis.tensors.items() for name in analysis.names_of(key)}
    absent = [name for name in analysis.subject.tensors.names(PARAMETER) if name not in state]
    if absent:
        mode = "training" if analysis.model.training else "evaluation"
        listed = ", ".join(absent[:4]) + (", ..." if len(absent) > 4 else "")
        reasons.append(f"left out, because the forward does not use them in {mode} mode: {listed}")
    after = {name: tuple(t.shape) for name, t in state.items() if name in before}
    reasons += _of_other_code(result, state) + unread_tensors(analysis, small, state, before, after)
    reasons += copies_that_differ(small, {name: shape for name, shape in after.items() if shape != before[name]})
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
        analysis.norms,
        _complete(result),
        (cost_of(analysis), cost_of(analysis, result.removal, result.constants)),
        None if result.proof is None else result.proof.compared,
        () if result.proof is None else result.proof.one_sided,
        tuple(call.name for call in analysis.subject.methods),
        weights=checksum(small),
        flow=flow_of(analysis),
        held=result.held,
    )


def _changed_statistics(analysis: Findings, marks: list[Mark]) -> list[str]:
    """A sentence for each statistic that changed; where it was to be preserved, with the reason why it is not."""
    told: dict[str, list[Mark]] = {}
    for mark in marks:
        event = analysis.events[mark.event]
        text = f"a statistic changed: {event.op} in {event.module or 'the model'}: {event.why}"
        told.setdefault(text, []).append(mark)
    if analysis.preserved is None:
        return list(told)
    whys = (why_changed(analysis, min(alike, key=lambda mark: mark.width)) for alike in told.values())
    return [f'{text}; norms="preserve" does not keep it: {why}' for text, why in zip(told, whys, strict=True)]


def _rescaled_norms(result: Result) -> list[str]:
    """A sentence about the norms whose weights get other numbers, since gradients get others with them."""
    folded = merge_tensors([f"{path}.weight" for path in rescaled_layers(result.analysis, result.removal)])
    if not folded:
        return []
    names = f"{', '.join(folded[:4])}{', ...' if folded[4:] else ''}"
    return [
        f'norms="preserve" multiplies {names} by sqrt(old width / new width), and epsilon by old width / new width: '
        "outputs count the old width, and gradients of these weights are divided by the root"
    ]


def _of_other_code(result: Result, state: Tensors) -> list[str]:
    """Sentences about hooks, and about code that the example inputs do not reach. state: the small model's tensors."""
    analysis, small = result.analysis, result.small
    known = names_in(analysis.model, analysis.subject.tensors)
    found = [*references_to_original(known, small), *carried(analysis.tensors, analysis.model, known, state, small)]
    found += [text for _, text in lost_hooks(result)] + wide_readings(result)
    return found + unseen_writes(analysis, result.removal)


def lost_hooks(result: Result) -> list[tuple[str, str]]:
    """The hooks of parameters that the small model does not have: name of the parameter, a sentence."""
    analysis, small = result.analysis, result.small
    if not any(hooks_of(analysis.tensors)):
        return []
    known = names_in(analysis.model, analysis.subject.tensors)
    return left_out(analysis.tensors, analysis.model, known, Tensors.of(small), small)


def wide_readings(result: Result) -> list[str]:
    """Sentences about attributes that kept their shape, and that hooks of smaller parameters read."""
    analysis, small = result.analysis, result.small
    if not any(hooks_of(analysis.tensors)):
        return []
    skip = [text for _, text in lost_hooks(result)]
    return too_wide(analysis.tensors, analysis.model, small, Tensors.of(small), skip)


def _complete(result: Result) -> Plan:
    """The plan with everything that is known after the rewrite: recounted sizes, structure and path."""
    analysis, small, plan = result.analysis, result.small, result.plan
    structure, path = plan.structure, analysis.captured.path
    if structure is None or not structure.coupled:
        structure = structure_of(analysis, result.removal.removed, plan.removed)
    plan = replace(plan, sizes=derived(analysis, small), structure=structure, path=path)
    return replace(plan, outputs=analysis.results.paths, norms=analysis.norms)
