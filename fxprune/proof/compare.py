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
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import FoldedConstants
from fxprune.analysis.observed import Observation, Walked
from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import clean_caches
from fxprune.capture.scopes import Key
from fxprune.capture.tensors import Tensors
from fxprune.capture.values import tensors_in
from fxprune.channels.groups import Removal
from fxprune.errors import VerificationError, text_of
from fxprune.proof.copies import Copying
from fxprune.proof.decisions import Decisions
from fxprune.proof.deterministic import deterministic
from fxprune.proof.difference import relative_error
from fxprune.proof.digests import Digester
from fxprune.proof.failures import another_scale, differs_inside, graph_differs, raised
from fxprune.proof.kept_statistics import KeptStatistics
from fxprune.proof.kept_weights import KeptWeights, kept_weights, making_weights
from fxprune.proof.precision import FLOAT32, FLOAT64, OWN, Precision
from fxprune.proof.runs import GraphRun, Modes, call_model, evaluation, modes_of, set_by_model
from fxprune.proof.trail import Trail, TrailRecorder, comparable, differs

TOLERANCE = FLOAT64.tolerance
"""A relative error up to this counts as rounding in float64."""

BLURRED = 1e-3
"""An error above this is never explained by rounding. An error below it can be a rounding that the model amplifies."""


class NoReferenceError(Exception):
    """The original does not run, so that there is no reference. The text says why."""


@dataclass(frozen=True)
class Proof:
    """The result of a comparison.

    error: the largest relative error of the outputs, and of an operation inside if that is wrong.
    compared: how many numbers were compared that depend on what was removed.
    precision: the type of numbers of both runs.
    wrong: the error that says what differs; None if the small model is right.
    notes: sentences for the reader of the record.
    """

    error: float
    compared: int
    precision: Precision
    wrong: VerificationError | None = None
    notes: tuple[str, ...] = ()


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
    pair = _Pair(findings, small, removal, zeroed, exact or {}, factors or ScaleFactors(), folded)
    failed: list[str] = []
    for precision in (FLOAT64, FLOAT32, OWN):
        try:
            done = pair.prove(precision)
        except NoReferenceError as error:
            failed.append(f"it does not run in {precision.name}: {error}")
            continue
        if precision is FLOAT64 and pair.without_number:
            other = _in_float32(pair, pair.without_number)
            done = other or done
            failed += ["it gives NaN in float64"] if other else []
        return _with_note(done, failed)
    raise NoReferenceError(failed[0].partition(": ")[2])


def _in_float32(pair: _Pair, without_number: int) -> Proof | None:
    """The proof in float32, None if the reference has as many NaN there as in float64."""
    try:
        done = pair.prove(FLOAT32)
    except NoReferenceError:
        return None
    return done if pair.without_number < without_number else None


def _with_note(done: Proof, failed: list[str]) -> Proof:
    if not failed:
        return done
    name, tolerance = done.precision.name, done.precision.tolerance
    note = f"proven in {name}, where an error up to {tolerance:.0e} is rounding, because {'; '.join(failed)}"
    return Proof(done.error, done.compared, done.precision, done.wrong, (*done.notes, note))


@dataclass
class _Pair:
    """The original and the small model. The fields are the arguments of `prove`.

    without_number: how many NaN the outputs of the reference had in the last proof.
    """

    findings: Findings
    small: nn.Module
    removal: Removal
    zeroed: Mapping[str, Any]
    exact: Mapping[str, torch.Tensor]
    factors: ScaleFactors
    folded: FoldedConstants | None
    without_number: int = 0
    digester: Digester = field(default_factory=Digester)

    @cached_property
    def statistics(self) -> bool:
        """True if the removal changes a statistic."""
        return bool((self.findings.inexact & self.removal.removed).any())

    @cached_property
    def _kept(self) -> KeptWeights:
        return kept_weights(self.findings.model, self.zeroed)

    def copying(self, *, plain: bool, moved: bool = False) -> Copying:
        """The copies of the reference. plain: True to remove nothing. moved: as in `Copying`."""
        return Copying(moved=moved) if plain else Copying(self._kept.zeroed, self._kept.values, moved=moved)

    @cached_property
    def norms_of_weights(self) -> frozenset[Key]:
        """The operations whose results differ because a norm of a weight counts columns that were folded."""
        return frozenset() if self.folded is None else frozenset(making_weights(self.findings))

    @cached_property
    def skipped(self) -> frozenset[str]:
        """The scopes whose operations are others in the small model."""
        originals = dict(self.findings.captured.module.named_modules())
        small = self.small.named_modules()
        replaced = {path for path, module in small if path and type(module) is not type(originals.get(path))}
        maps = () if self.folded is None else self.folded.maps  # what these nodes give lacks what a map adds later
        mapped = [node for node in self.findings.captured.graph.nodes if node.name in maps]
        scopes = [str(node.target) if node.op == "call_module" else f"%{node.name}" for node in mapped]
        return frozenset((*replaced, *(self.findings.preserved or {}), *scopes))

    @cached_property
    def changed(self) -> frozenset[str]:
        """The names of the tensors of the small model that are not those of the original."""
        known = self.findings.captured.tensors
        own = ((found.name, found.tensor.shape) for found in self.tensors.unique)
        return frozenset(
            (*self.exact, *(name for name, shape in own if name not in known or shape != known[name].shape))
        )

    @cached_property
    def tensors(self) -> Tensors:
        """The parameters and buffers of the small model."""
        return Tensors.of(self.small)

    def prove(self, precision: Precision) -> Proof:
        """The proof in one precision, over all example inputs and modes."""
        self.without_number = 0
        done = Proof(0.0, 0, precision)
        with clean_caches(self.findings.model), deterministic(precision):
            for inputs, modes, walked in self._rounds():
                one = _Round(self, precision, inputs, modes, walked).prove()
                if one.wrong is not None:
                    decisions = Decisions(self.digester, precision.tolerance)
                    one = _Round(self, precision, inputs, modes, walked, decisions).prove()
                done = Proof(
                    max(done.error, one.error),
                    done.compared + one.compared,
                    precision,
                    done.wrong or one.wrong,
                    (*done.notes, *one.notes),
                )
        return done

    def _rounds(self) -> Iterator[tuple[Inputs, Modes, Walked | None]]:
        """The inputs and modes to compare in, and the run of the analysis on them if there was one."""
        captured, (main, *others) = self.findings.captured, self.findings.walked
        as_it_is = modes_of(captured.module)
        training = any(module.training for module in captured.module.modules())
        rounds: list[tuple[Inputs, Modes, Walked | None]] = [(main.inputs, as_it_is, main)]
        rounds += [(walked.inputs, set_by_model(captured.module, walked.training), walked) for walked in others]
        if training and not others and not captured.front_end.fixes_mode:
            rounds.append((main.inputs, evaluation, None))
        if self.folded is not None:  # constants are those of evaluation
            walked = next((walked for walked in others if not walked.training), None)
            rounds = [(self.findings.inputs, evaluation, walked if training else main)]
        yield from rounds
        for inputs in self.findings.subject.more:
            yield inputs, evaluation if self.folded is not None else as_it_is, None


@dataclass
class _Round:
    """The comparison on one example input, in one mode.

    walked: the run of the analysis on this input in this mode, None if there was none.
    decisions: the decisions of the reference, for the small model; None if it decides for itself.
    """

    pair: _Pair
    precision: Precision
    inputs: Inputs
    modes: Modes
    walked: Walked | None
    decisions: Decisions | None = None

    def prove(self) -> Proof:
        """The proof of this round."""
        pair, times = self.pair, None
        graph_error = None
        model = self._users_model()
        if model is not None:
            times = len(model)
        reference, theirs = self._reference(times)
        if model is not None:
            graph_error = self._against_model(model, reference)
        pair.without_number += sum(int(t.isnan().sum()) for t in tensors_in(reference) if t.is_floating_point())
        results, ours = self._result(len(reference), theirs)
        if pair.findings.captured.real and theirs is not None and ours is not None:
            self._same_numbers(theirs, ours)
        error = relative_error(results, reference)
        wrong, inside = self._wrong(error, reference, theirs, ours)
        compared = self._compared(theirs, ours) if theirs is not None and ours is not None else 0
        if not self._digests and pair.changed:  # only outputs are compared
            compared = sum(tensor.numel() for tensor in tensors_in(reference))
        note = self.decisions.note() if self.decisions is not None else ""
        return Proof(max(error, inside), compared, self.precision, graph_error or wrong, (note,) if note else ())

    @property
    def _digests(self) -> bool:
        """True if the results of operations are compared: those of the analysis run in this round."""
        return self.walked is not None and not self.pair.findings.captured.needs_hooks

    @property
    def _observations(self) -> Mapping[str, Observation]:
        """The operations that the analysis has seen in the mode of this round, or nearly the same ones."""
        return (self.walked or self.pair.findings.walked[0]).observations

    # -- the runs -----------------------------------------------------------------------------------------

    def _users_model(self) -> list[Any] | None:
        """The results of the original as its user calls it; None where that is what the reference runs."""
        findings = self.pair.findings
        captured, model = findings.captured, findings.model
        hooked = model._forward_hooks or model._forward_pre_hooks
        if captured.keeps_class or (captured.module is model and not hooked):
            return None
        try:
            return call_model(
                model,
                self.inputs,
                self.pair.copying(plain=self.pair.statistics),
                times=None,
                precision=self.precision,
                modes=self.modes,
                tensors=findings.subject.tensors,
            )
        except Exception as error:
            raise NoReferenceError(text_of(error, lines=1)) from error

    def _against_model(self, model: list[Any], reference: list[Any]) -> VerificationError | None:
        """The error if the graph gives other results than the user's model, with the same slots set to zero."""
        if self.pair.statistics:
            reference, _ = self._reference(len(model), plain=True)
        error = relative_error(reference, model)
        if error <= self.precision.tolerance:
            return None
        moved = call_model(
            self.pair.findings.model,
            self.inputs,
            self.pair.copying(plain=self.pair.statistics, moved=True),
            times=len(model),
            precision=self.precision,
            modes=self.modes,
            tensors=self.pair.findings.subject.tensors,
        )
        return None if self._is_rounding(error, relative_error(moved, model)) else graph_differs(error)

    def _reference(
        self, times: int | None, *, plain: bool = False, moved: bool = False
    ) -> tuple[list[Any], Trail | None]:
        """The results of the reference and its trail. plain: True to remove nothing. moved: as in `Copying`."""
        pair, captured = self.pair, self.pair.findings.captured
        unread = self._digests and pair.folded is None  # statistics that no operation reads; constants stay in theirs
        taken = pair.statistics or unread
        statistics = KeptStatistics(pair.removal) if taken and not plain else None
        recorder = None if plain else self._recorder(statistics=statistics)
        copying = pair.copying(plain=plain, moved=moved)
        run = GraphRun(
            captured.graph,
            captured.module,
            copying,
            recorder,
            precision=self.precision,
            modes=self.modes,
            tensors=captured.registered,
        )
        try:
            results = run.calls(captured.values(self.inputs), times)
        except Exception as error:
            if pair.statistics and not plain and self._runs():
                raise raised("the reference", error, "with statistics over the kept channels") from error
            raise NoReferenceError(text_of(error, lines=1)) from error
        return results, recorder.trail if recorder is not None else None

    def _runs(self) -> bool:
        """True if the original runs without an error."""
        try:
            self._reference(1, plain=True)
        except NoReferenceError:
            return False
        return True

    def _result(self, times: int, before: Trail | None) -> tuple[list[Any], Trail | None]:
        """The results of the small model and its trail. before: the trail of the reference."""
        pair, captured = self.pair, self.pair.findings.captured
        recorder = self._recorder(before=before)
        graph = pair.small.graph if isinstance(pair.small, fx.GraphModule) else captured.graph
        copying = Copying(unrounded=pair.exact, made=recorder.made if recorder is not None else _ignore)
        run = GraphRun(
            graph,
            pair.small,
            copying,
            recorder,
            precision=self.precision,
            modes=self.modes,
            tensors=pair.tensors,
        )
        try:
            results = run.calls(captured.values(self.inputs), times)
        except Exception as error:
            raise raised("the small model", error, "where the original does not") from error
        return results, recorder.trail if recorder is not None else None

    def _recorder(self, statistics: KeptStatistics | None = None, before: Trail | None = None) -> TrailRecorder | None:
        pair, captured = self.pair, self.pair.findings.captured
        if not (self._digests or captured.real or statistics is not None):
            return None
        return TrailRecorder(
            pair.findings,
            pair.removal,
            pair.digester,
            observations=self._observations,
            factors=pair.factors,
            skipped=pair.skipped,
            statistics=statistics,
            before=before,
            changed=pair.changed,
            tolerance=self.precision.tolerance,
            digests=self._digests,
            decisions=self.decisions,
        )

    # -- what they gave -----------------------------------------------------------------------------------

    def _same_numbers(self, theirs: Trail, ours: Trail) -> None:
        """Raises `VerificationError` if an operation is called with other fractions in the small model."""
        for key, step in ours.steps.items():
            other = theirs.steps.get(key)
            if other is None or len(step.numbers) != len(other.numbers):
                continue
            expected = self.pair.factors.numbers.get(key, other.numbers)
            if not np.allclose(step.numbers, expected, rtol=self.precision.tolerance, atol=0, equal_nan=True):
                raise another_scale(key, step, other)

    def _wrong(
        self, error: float, reference: list[Any], theirs: Trail | None, ours: Trail | None
    ) -> tuple[VerificationError | None, float]:
        """The error that says what differs and how far it is apart; None and 0.0 if nothing does.

        Nor does what differs only by roundings that the model amplifies.
        """
        suspects = list(self._suspects(theirs, ours)) if theirs is not None and ours is not None else []
        if error <= self.precision.tolerance and not suspects:
            return None, 0.0
        moved, trail = self._reference(len(reference), moved=True)
        amplified = relative_error(moved, reference)
        right = error <= self.precision.tolerance or self._is_rounding(error, amplified)
        for key, apart in suspects:
            other = trail.steps.get(key) if trail is not None and theirs is not None else None
            movement = differs(other, theirs.steps[key]) if other is not None and theirs is not None else 0.0
            if not self._is_rounding(apart, movement) and ours is not None:
                return differs_inside(key, ours.steps[key], apart, error, self.precision.tolerance), apart
        return (None if right else differs_inside(None, None, error, error, self.precision.tolerance)), 0.0

    def _suspects(self, theirs: Trail, ours: Trail) -> Iterator[tuple[Any, float]]:
        """The operations whose results differ by more than the tolerance, in the order of the run.

        None follows a decision that turned out otherwise, such as the order of equal numbers.
        """
        same = comparable(ours, theirs, self._observations)
        for key, step in ours.steps.items():
            other = theirs.steps.get(key)
            if other is None or key[:3] not in same or key in self.pair.norms_of_weights:
                continue
            if self.pair.factors.results and not step.depends:
                continue  # a number computed from a size, such as the scale that the factors make up for
            if not (apart := differs(step, other)) <= self.precision.tolerance:
                yield key, apart
            if step.decision is not None and other.decision is not None and step.decision.error(other.decision) > 0:
                return

    def _is_rounding(self, error: float, amplified: float) -> bool:
        """True if an error is explained by roundings. amplified: the change when every number moves by one rounding."""
        blurred = max(BLURRED, 10 * self.precision.tolerance)
        return error < blurred and error <= 100 * amplified

    def _compared(self, theirs: Trail, ours: Trail) -> int:
        """The number of numbers that were compared and depend on what was removed."""
        same = comparable(ours, theirs, self._observations)
        count = 0
        for key, step in ours.steps.items():
            other = theirs.steps.get(key)
            if other is None or key[:3] not in same or not step.depends or len(step.digests) != len(other.digests):
                continue
            pairs = zip(step.digests, other.digests, strict=True)
            count += sum(a.count for a, b in pairs if a is not None and b is not None)
        return count


def _ignore(tensor: torch.Tensor, name: str) -> None:
    """Do nothing with a copy that was made."""


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
