"""Proof by numbers: the small model and its reference run in float64, and what they compute is compared.

The reference is the original with every removed slot of every parameter and buffer set to zero. A statistic over
channels, such as the mean of a layer norm, would count these zeros, which it does not do if the channels never existed.
So the operations that take such a statistic get the kept slots only; all other operations run as usual.

Not only the outputs are compared, but the results of all operations that both models run, at the kept slots: outputs
that are empty, integers or saturated say little. Where forward changes the state of the model, a second call is
compared as well. On paths that make a graph, the original is also called as its user calls it, and must give what the
graph gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import FoldedConstants
from fxprune.analysis.observed import Walked
from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.capture.inputs import Inputs
from fxprune.capture.kept_buffers import TAKE_FROM_SELF, called_parts
from fxprune.capture.process_state import clean_caches
from fxprune.channels.groups import Removal
from fxprune.errors import VerificationError
from fxprune.progress import long_step
from fxprune.proof.as_it_is import raises_as_it_is
from fxprune.proof.decisions import Decisions
from fxprune.proof.deterministic import deterministic
from fxprune.proof.failures import REPORT
from fxprune.proof.norm_inputs import NormInputs
from fxprune.proof.one_round import Round
from fxprune.proof.pair import Pair
from fxprune.proof.precision import FLOAT32, FLOAT64, OWN, Precision
from fxprune.proof.result import NoReferenceError, Proof
from fxprune.proof.runs import Modes, evaluation, modes_of, set_by_model

TOLERANCE = FLOAT64.tolerance
"""A relative error up to this counts as rounding in float64."""


def prove(
    findings: Findings,
    small: nn.Module,
    removal: Removal,
    zeroed: Mapping[str, Any],
    exact: Mapping[str, torch.Tensor] | None = None,
    factors: ScaleFactors | None = None,
    *,
    folded: FoldedConstants | None = None,
) -> Proof:
    """Compare `small` with its reference, on all example inputs.

    Args:
        findings: the analysis of the original, with the example inputs.
        small: the small model.
        removal: the removed channels.
        zeroed: tensor -> dimension -> the slots that are zero in the reference. These are the removed ones, or fewer if
            constants were folded.
        exact: name -> the new numbers of parameters of `small`, before they were rounded to the parameter's type.
        factors: the factors that weights of `small` carry, since its code computes other scales.
        folded: the constants of removed channels that were folded, None if the channels are gone without a trace. They
            are those of evaluation mode.

    Both run in float64. Where the original does not run in float64, or gives NaN there, they run in float32, or in the
    types that the model has; the notes say so.

    Raises `NoReferenceError` if the original does not run. Raises `VerificationError` if the small model raises, or if
    its operations are called with other fractions.
    """
    with long_step("proof"):
        return _proven(Pair(findings, small, removal, zeroed, exact or {}, factors or ScaleFactors(), folded))


def _proven(pair: Pair) -> Proof:
    """The proof in the first precision in which the original runs."""
    failed: list[str] = []
    for precision in (FLOAT64, FLOAT32, OWN):
        try:
            done = _proven_in(pair, precision)
        except NoReferenceError as error:
            calls = _called_outside(pair)
            why = f"{calls[0]}, whose numbers stay as they are" if calls else str(error)
            failed.append(f"it does not run in {precision.name}: {why}")
            continue
        if precision is FLOAT64 and done.without_number:
            other = _in_float32(pair, done.without_number)
            done = other or done
            failed += ["it gives NaN in float64"] if other else []
        wrong = None if done.wrong is None else _explained(pair, done.wrong)
        return _with_note(replace(done, wrong=wrong), failed)
    raise NoReferenceError(failed[0].partition(": ")[2])


def _called_outside(pair: Pair) -> list[str]:
    """Sentences about code of the model that calls its layers by a closure: the proof cannot put others there."""
    return [] if isinstance(pair.findings.model, fx.GraphModule) else called_parts(pair.findings.model)


def _explained(pair: Pair, error: VerificationError) -> VerificationError:
    """An error, which names the closure by which the model calls its own layers, if there is one."""
    calls = _called_outside(pair) if error.do == REPORT else []
    if not calls:
        return error
    why = f"{error.why}; {calls[0]}, and runs that, not what a copy has"
    return VerificationError(error.what, at=error.at, why=why, do=TAKE_FROM_SELF)


def _proven_in(pair: Pair, precision: Precision) -> Proof:
    """The proof in one precision, over all example inputs and modes."""
    done = Proof(0.0, 0, precision)
    rounds = list(_rounds(pair))
    with clean_caches(pair.findings.model):
        with deterministic(precision) as mode:
            for number, (inputs, modes, walked, method) in enumerate(rounds):
                one = Round(pair, precision, inputs, modes, walked, method).prove()
                if one.wrong is not None:
                    decisions = Decisions(pair.digester, precision.tolerance)
                    norm_inputs = NormInputs(pair.digester, precision.tolerance)
                    one = Round(pair, precision, inputs, modes, walked, method, decisions, norm_inputs).prove()
                done = done.with_round(replace(one, blind="") if number else one)
        if done.wrong is None:
            inputs, modes, *_ = rounds[0]
            done = replace(done, wrong=raises_as_it_is(pair, inputs, modes, mode.replaced))
    return done


def _rounds(pair: Pair) -> Iterator[tuple[Inputs, Modes, Walked | None, str]]:
    """The inputs and modes to compare in, the run of the analysis on them if there was one, the method to call."""
    findings, folded = pair.findings, pair.folded is not None
    captured, (main, *others) = findings.captured, findings.walked
    methods = [walked for walked in others if walked.method]
    others = [walked for walked in others if not walked.method]
    as_it_is = modes_of(captured.module)
    training = any(module.training for module in captured.module.modules())
    rounds: list[tuple[Inputs, Modes, Walked | None]] = [(main.inputs, as_it_is, main)]

    def modes_in(walked: Walked) -> Modes:
        return as_it_is if walked.training == main.training else set_by_model(captured.module, walked.training)

    rounds += [(walked.inputs, modes_in(walked), walked) for walked in others]
    if training and all(map(_trains, others)) and not captured.front_end.fixes_mode:
        rounds.append((main.inputs, evaluation, None))
    if folded:  # constants are those of evaluation
        plain = [walked for walked in others if not walked.training and not walked.gradients]
        rounds = [(findings.inputs, evaluation, next(iter(plain), None) if training else main)]
        rounds += [(run.inputs, evaluation, run) for run in others if run.gradients and not run.training]
    for inputs, modes, run in rounds:
        yield inputs, modes, run, ""
    for inputs in findings.subject.more:
        yield inputs, evaluation if folded else as_it_is, None, ""
    if folded:  # one run of each method with and without gradients, that in evaluation if there is one
        runs = {(run.method, run.gradients): run for run in sorted(methods, key=_trains, reverse=True)}
        methods = list(runs.values())
    for run in methods:
        yield run.inputs, evaluation if folded else modes_in(run), run, run.method


def _trains(walked: Walked) -> bool:
    return walked.training


def _in_float32(pair: Pair, without_number: int) -> Proof | None:
    """The proof in float32, None if the reference has as many NaN there as in float64."""
    try:
        done = _proven_in(pair, FLOAT32)
    except NoReferenceError:
        return None
    return done if done.without_number < without_number else None


def _with_note(done: Proof, failed: list[str]) -> Proof:
    if not failed:
        return done
    name, tolerance = done.precision.name, done.precision.tolerance
    note = f"proven in {name}, where an error up to {tolerance:.0e} is rounding, because {'; '.join(failed)}"
    return replace(done, notes=(*done.notes, note), instead=note)


def first_wrong_group(is_wrong: Callable[[Any], bool], removal: Removal) -> int:
    """The number of the first group whose removal alone gives a wrong model; -1 if there is none.

    Args:
        is_wrong: a function from flags, one per channel, to True if the model without these channels is wrong.
        removal: the channels that were removed together.
    """
    s = removal.solution
    for group in range(s.groups):
        channels = s.in_group(group)
        alone = np.zeros_like(removal.removed)
        alone[channels] = removal.removed[channels]
        if alone.any() and is_wrong(alone):
            return group
    return -1
