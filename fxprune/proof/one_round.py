"""One round of a proof: the reference and the small model run on one example input, in one mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from fxprune.analysis.observed import Observation, Walked
from fxprune.capture.inputs import Inputs
from fxprune.capture.modes import MODES
from fxprune.capture.output_paths import tensors_that_count
from fxprune.capture.scopes import Key
from fxprune.capture.values import tensors_in
from fxprune.errors import VerificationError, counted, text_of
from fxprune.proof.copies import Copying
from fxprune.proof.decisions import Decisions
from fxprune.proof.difference import relative_error
from fxprune.proof.failures import differs_inside, graph_differs, raised
from fxprune.proof.judgement import Judgement
from fxprune.proof.kept_statistics import KeptStatistics
from fxprune.proof.norm_inputs import NormInputs
from fxprune.proof.one_sided import OneSided, one_sided
from fxprune.proof.pair import Pair
from fxprune.proof.precision import Precision
from fxprune.proof.quotients import QUOTIENTS
from fxprune.proof.result import NoReferenceError, Proof
from fxprune.proof.runs import GraphRun, Modes, call_model
from fxprune.proof.trail import Trail, TrailRecorder, errors_of

BLURRED = 1e-3
"""An error above this is never explained by rounding. An error below it can be a rounding that the model amplifies."""

MOVES = 8
"""The most runs in which every number is moved by one rounding. One run can leave a number as it is that is nothing but
roundings: `softmax(x).sum() - 1` is a small multiple of the least difference from 1, or zero."""


@dataclass(frozen=True)
class Round:
    """The comparison on one example input, in one mode.

    walked: the run of the analysis on this input in this mode, None if there was none.
    method: what is called instead of forward.
    decisions: the decisions of the reference, for the small model; None if it decides for itself.
    norm_inputs: the numbers that enter norms of the reference, likewise.
    """

    pair: Pair
    precision: Precision
    inputs: Inputs
    modes: Modes
    walked: Walked | None
    method: str = ""
    decisions: Decisions | None = None
    norm_inputs: NormInputs | None = None

    def prove(self) -> Proof:
        """The proof of this round. Raises `VerificationError` if the small model raises, or has another scale."""
        model = self._users_model(plain=self.pair.statistics)
        reference, theirs = self._reference(None if model is None else len(model))
        settled = theirs is not None and bool(theirs.settled)
        graph_error = None if model is None else self._against_model(model, reference, settled)
        results, ours = self._result(len(reference), theirs)
        judgement = None
        if theirs is not None and ours is not None:
            judgement = Judgement(self.pair, self.precision.tolerance, self._observations, theirs, ours)
            scale = judgement.another_scale() if self.pair.findings.captured.real else None
            if scale is not None:
                raise scale
        error = relative_error(results, reference)
        wrong, inside, noise = self._wrong(error, reference, judgement)
        notes = [taken.note() for taken in (self.decisions, self.norm_inputs) if taken is not None]
        if noise:
            notes.append(self._noise_note())
            error = 0.0
        elif wrong is None and error > self.precision.tolerance:
            notes.append(
                f"the error of the proof, {error:.0e}, is rounding that the model makes larger: "
                "one rounding of each of its numbers moves the results of the original by a hundredth of that or more"
            )
        notes.append(blind := _blind(tensors_in(reference)))
        return Proof(
            max(error, inside),
            self._compared(reference, judgement),
            self.precision,
            graph_error or wrong,
            tuple(filter(None, notes)),
            self._one_sided(judgement),
            sum(int(t.isnan().sum()) for t in tensors_in(reference) if t.is_floating_point()),
            blind,
        )

    @property
    def _digests(self) -> bool:
        """True if the results of operations are compared: those of the analysis run in this round."""
        return self.walked is not None and not self.pair.findings.captured.needs_hooks

    @property
    def _gradients(self) -> bool:
        """True if both models record gradients."""
        return self.walked is not None and self.walked.gradients

    @property
    def _observations(self) -> Mapping[str, Observation]:
        """The operations that the analysis has seen in the mode of this round, or nearly the same ones."""
        return (self.walked or self.pair.findings.walked[0]).observations

    @cached_property
    def _quotients(self) -> bool:
        """True if there are quotients with removed slots."""
        vectors = (
            vector
            for observation in self._observations.values()
            for key, operands in observation.outputs.items()
            if key[2] in QUOTIENTS
            for operand in operands
            for vector in operand.vectors
        )
        return any(self.pair.removal.kept(vector) is not None for vector in vectors)

    # -- the runs -----------------------------------------------------------------------------------------

    def _users_model(self, *, plain: bool) -> list[Any] | None:
        """The results of the original as its user calls it; None where that is what the reference runs.

        plain: True to remove nothing.
        """
        findings = self.pair.findings
        captured, model = findings.captured, findings.model
        hooked = model._forward_hooks or model._forward_pre_hooks
        if captured.keeps_class or (captured.module is model and not hooked):
            return None
        try:
            results = call_model(
                model,
                self.inputs,
                self.pair.copying(plain=plain),
                times=None,
                precision=self.precision,
                modes=self.modes,
                tensors=findings.subject.tensors,
                gradients=self._gradients,
            )
        except Exception as error:
            raise NoReferenceError(text_of(error, lines=1)) from error
        return self._outputs(results)

    def _outputs(self, results: list[Any]) -> list[Any]:
        """The tensors that count as outputs in the results of some calls, as one list per call."""
        outputs = None if self.method else self.pair.findings.results.outputs
        return [tensors_that_count(outputs, result) for result in results]

    def _against_model(self, model: list[Any], reference: list[Any], settled: bool) -> VerificationError | None:
        """The error if the graph gives other results than the user's model, with the same slots set to zero.

        settled: True if the reference has quotients that were no numbers at removed slots, as they are in the model.
        """
        plain = self.pair.statistics or settled
        if plain:
            model = self._users_model(plain=True) or model
            reference, _ = self._reference(len(model), plain=True)
        error = relative_error(reference, model)
        if error <= self.precision.tolerance:
            return None
        moved = call_model(
            self.pair.findings.model,
            self.inputs,
            self.pair.copying(plain=plain, moved=1),
            times=len(model),
            precision=self.precision,
            modes=self.modes,
            tensors=self.pair.findings.subject.tensors,
            gradients=self._gradients,
        )
        amplified = relative_error(self._outputs(moved), model)
        return None if self._is_rounding(error, amplified) else graph_differs(error)

    def _reference(self, times: int | None, *, plain: bool = False, moved: int = 0) -> tuple[list[Any], Trail | None]:
        """The results of the reference and its trail. plain: True to remove nothing. moved: as in `Copying`."""
        pair, captured = self.pair, self.pair.findings.captured
        unread = self._digests and pair.folded is None  # statistics that no operation reads; constants stay in theirs
        taken = pair.statistics or unread
        statistics = KeptStatistics(pair.removal) if taken and not plain else None
        recorder = None if plain else self._recorder(statistics=statistics, quotients=self._quotients)
        copying = pair.copying(plain=plain, moved=moved)
        run = GraphRun(
            captured.graph,
            captured.module,
            copying,
            recorder,
            precision=self.precision,
            modes=self.modes,
            tensors=captured.registered,
            gradients=self._gradients,
        )
        try:
            results = run.calls(captured.arguments(self.inputs, self.method), times)
        except Exception as error:
            if pair.statistics and not plain and self._runs():
                raise raised("the reference", error, "with statistics over the kept channels") from error
            raise NoReferenceError(text_of(error, lines=1)) from error
        return self._outputs(results), recorder.trail if recorder is not None else None

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
            gradients=self._gradients,
        )
        try:
            results = run.calls(captured.arguments(self.inputs, self.method), times)
        except Exception as error:
            raise raised("the small model", error, "where the original does not") from error
        return self._outputs(results), recorder.trail if recorder is not None else None

    def _recorder(
        self, statistics: KeptStatistics | None = None, before: Trail | None = None, *, quotients: bool = False
    ) -> TrailRecorder | None:
        pair, captured = self.pair, self.pair.findings.captured
        if not (self._digests or captured.real or statistics is not None or quotients):
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
            norm_inputs=self.norm_inputs,
            quotients=quotients,
        )

    # -- what they gave -----------------------------------------------------------------------------------

    def _wrong(
        self, error: float, reference: list[Any], judgement: Judgement | None
    ) -> tuple[VerificationError | None, float, bool]:
        """The error that says what differs and how far it is apart; None and 0.0 if nothing does.

        Nor does what differs only by roundings that the model amplifies. Besides, True if the outputs are nothing else.
        """
        tolerance = self.precision.tolerance
        suspects = [] if judgement is None else list(judgement.suspects())
        if error <= tolerance and not suspects:
            return None, 0.0, False
        moved, trail = self._reference(len(reference), moved=1)
        amplified = relative_error(moved, reference)
        noise = False
        if judgement is not None:
            sizes = [float(t.abs().max()) for t in tensors_in(reference) if t.is_floating_point() and t.numel()]
            noise = (
                self._digests
                and error > tolerance
                and self._is_noise(error, amplified, max(sizes, default=0.0), judgement)
            )
            trails = [trail]
            for key, apart in suspects:
                if not self._tells_nothing(key, judgement, trails, len(reference)):
                    return differs_inside(key, judgement.ours.steps[key], apart, error, tolerance), apart, False
        right = noise or error <= tolerance or self._is_rounding(error, amplified)
        return (None if right else differs_inside(None, None, error, error, tolerance)), 0.0, noise

    def _is_rounding(self, error: float, amplified: float) -> bool:
        """True if an error is explained by roundings. amplified: the change when every number moves by one rounding."""
        blurred = max(BLURRED, 10 * self.precision.tolerance)
        return error < blurred and error <= 100 * amplified

    def _tells_nothing(self, key: Key, judgement: Judgement, trails: list[Trail | None], times: int) -> bool:
        """True if an error inside of the models is no sign of a difference: it is rounding, or is that of noise.

        trails: those of the reference with every number moved by one rounding. More are run, and appended, for numbers
            that are tiny beside others of the run. times: how often the model is called.
        """
        theirs, ours = judgement.theirs.steps[key], judgement.ours.steps[key]
        errors = errors_of(ours, theirs, ours)
        sizes = [0.0 if digest is None else digest.size for digest in ours.digests]
        amplified = [0.0] * len(errors)
        for move in range(MOVES):
            if move == len(trails):
                trails.append(self._reference(times, moved=move + 1)[1])
            trail = trails[move]
            other = trail.steps.get(key) if trail is not None else None
            moves = (other and errors_of(other, theirs, ours)) or amplified
            amplified = list(map(max, amplified, moves))
            telling = [
                size
                for error, moved, size in zip(errors, amplified, sizes, strict=True)
                if error > self.precision.tolerance
                and not self._is_rounding(error, moved)
                and not self._is_noise(error, moved, size, judgement)
            ]
            if not all(self._is_tiny(size, judgement) for size in telling):
                return False
            if not telling:
                return True
        return False

    def _is_tiny(self, size: float, judgement: Judgement) -> bool:
        """True if numbers are tiny beside others of the run."""
        return size <= self.precision.tolerance * judgement.largest

    def _is_noise(self, error: float, amplified: float, size: float, judgement: Judgement) -> bool:
        """True if numbers are nothing but roundings, as is the mean of channels that the norm before has centred.

        They are tiny beside others of the run, and one rounding moves them by more than a thousandth of their size.
        """
        return self._is_tiny(size, judgement) and amplified > BLURRED and error <= 100 * amplified

    def _noise_note(self) -> str:
        where = (
            ""
            if self.walked is None
            else f" in {MODES[self.walked.training]} mode{' with gradients' * self._gradients}"
        )
        return (
            f"the results{where} were not compared, operations inside were: on these inputs the original gives nothing "
            "but roundings, as a norm over equal examples does"
        )

    def _compared(self, reference: list[Any], judgement: Judgement | None) -> int:
        """The number of numbers that were compared and depend on what was removed."""
        if not self._digests and self.pair.changed:  # only outputs are compared
            return sum(tensor.numel() for tensor in tensors_in(reference))
        return 0 if judgement is None else judgement.compared()

    def _one_sided(self, judgement: Judgement | None) -> tuple[OneSided, ...]:
        """The operations that did not run equally often in both models."""
        if judgement is None or not self._digests:
            return ()
        return one_sided(judgement.theirs, judgement.ours, self.pair.skipped)


def _ignore(tensor: torch.Tensor, name: str) -> None:
    """Do nothing with a copy that was made."""


def _blind(results: list[torch.Tensor]) -> str:
    """A sentence about results in which each number is NaN; "" if there are none."""
    empty = sum(bool(t.is_floating_point() and t.numel() and t.isnan().all()) for t in results)
    if not empty:
        return ""
    one = f"{empty} of the {counted(len(results), 'tensor')} that the original returns {'is' if empty == 1 else 'are'}"
    why = "NaN throughout on these inputs, so nothing is compared there"
    return f"{one} {why}: give inputs on which it has numbers (is a mask True everywhere?)"
