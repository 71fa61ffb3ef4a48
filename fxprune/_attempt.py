"""One attempt of `transform`, on one path: plan, rewrite, prove."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fxprune._find import AnalyzeArguments
from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import FoldedConstants
from fxprune.analysis.held_back import HeldBack, held_back
from fxprune.analysis.lock_channels import lock_channels
from fxprune.channels.groups import Removal
from fxprune.errors import CaptureError, PlanError, RewriteError, VerificationError
from fxprune.fold import ResolvedPlan, make_plan, resolve_plan
from fxprune.planning.from_channels import plan_from
from fxprune.planning.plan import Plan
from fxprune.planning.select import by_group, carried_over, ignored_groups, warning_of_several
from fxprune.planning.uniform import by_config, with_config
from fxprune.proof.compare import first_wrong_group, prove
from fxprune.proof.original import error_of_original
from fxprune.proof.result import NoReferenceError, Proof
from fxprune.rewrite.factors import factors_of
from fxprune.rewrite.graph import Rewritten, rewrite
from fxprune.rewrite.norms import preserve
from fxprune.running.processes import ALONE, Processes


@dataclass(frozen=True)
class Request:
    """The arguments of `transform`.

    call: those that `analyze` has too.
    plan: the plan to apply, None if one is made from `choices`.
    choices: the options of `make_plan`: ratio, masks, importance and so on.
    known: name of a path -> the findings on it, if the model was analysed before.
    why_not: name of a path -> why it was not taken, if it was tried before.
    processes: those that make the model together; they have to agree on the plan.
    """

    call: AnalyzeArguments
    plan: Plan | None
    choices: Mapping[str, Any]
    verify: bool = True
    known: Mapping[str, Findings] = field(default_factory=dict)
    why_not: Mapping[str, str] = field(default_factory=dict)
    processes: Processes = ALONE


def with_norms_of_plan(request: Request) -> tuple[Request, tuple[str, ...]]:
    """The request with the norms of its plan, where none are given; a sentence where those that are given differ.

    The findings that are known are changed too: which statistics can be preserved follows from them.
    """
    call, plan = request.call, request.plan
    if not isinstance(plan, Plan) or plan.norms == "kept":
        return request, ()
    if call.norms is None:
        known = {path: one if one.preserved else preserve(one) for path, one in request.known.items()}
        return replace(request, call=replace(call, norms=plan.norms), known=known), ()
    text = f'the plan was made with norms="{plan.norms}", and norms="{call.norms}" was given, which decides'
    return request, (text,) if call.norms != plan.norms else ()


@dataclass(frozen=True)
class Result:
    """A small model, and how it was made.

    analysis: the analysis that it was made from; some channels may be locked that could not be rewritten.
    plan, removal: the removed channels, as a plan and as flags.
    proof: the comparison with the reference, None if there was none.
    constants: the constants that were folded.
    unproven: why the small model could not be compared, "" if it was, or was not asked for.
    why_not: name of a path that was tried before -> why it was not taken.
    recounted: sentences about attributes that forward does not read.
    more_by_graph: what a graph would lose more, and why it is not taken all the same; "" if there is none.
    several: a warning about names in the options that mean several groups; "" without any.
    held: the channels that were locked since they could not be rewritten.
    """

    analysis: Findings
    plan: Plan
    removal: Removal
    small: nn.Module
    proof: Proof | None
    constants: FoldedConstants
    unproven: str = ""
    why_not: dict[str, str] = field(default_factory=dict)
    recounted: tuple[str, ...] = ()
    more_by_graph: str = ""
    several: str = ""
    held: tuple[HeldBack, ...] = ()


def attempt(analysis: Findings, request: Request, *, locking: bool = False) -> Result:
    """Make a plan, rewrite the model and prove it, from an analysis on one path.

    locking: True to lock channels that cannot be rewritten and to start again without them; False to raise the error.

    Raises `UnprovenError` if the small model is wrong, `RewriteError` if a size cannot be recounted, `CaptureError` if
    the forward raises, `PlanError` if the plan cannot be applied.
    """
    choices = request.choices
    analysis = with_config(analysis) if by_config(choices.get("uniform")) else analysis
    first, held = analysis, dict[str, str]()
    while True:
        try:
            resolved = _resolved(analysis, request, held)  # which makes smaller models too, for a latency
            request.processes.agree(resolved.plan.removed)
            made = rewrite(analysis, resolved.removal, resolved.constants)
        except RewriteError as error:
            narrower = lock_channels(analysis, error) if locking else None
            if narrower is None:
                raise
            held[f"channels stay at {error.at}: {error.first_why}"] = _whose(narrower, error)
            analysis, request = narrower, replace(request, choices=_carried_over(first, choices, narrower))
            continue
        plan = replace(resolved.plan, factors=factors_of(analysis, resolved.removal, made.factors))
        several = "" if request.plan is not None else warning_of_several(first, choices)
        result = Result(
            analysis,
            plan,
            resolved.removal,
            made.small,
            None,
            resolved.constants,
            recounted=made.reasons,
            several=several,
            held=held_back(first, analysis),
        )
        return _proven(result, resolved, request, made)


def _carried_over(first: Findings, choices: Mapping[str, Any], narrower: Findings) -> dict[str, Any]:
    """The options for an analysis in which channels are locked: patterns mean what they meant in the first one.

    So a pattern may name a group that is locked now, and no number of a group means another one.
    """
    stay = dict.fromkeys(ignored_groups(first, choices.get("ignore", ())), True)
    carried: dict[str, Any] = {"ignore": tuple(carried_over(first, stay, narrower))}
    for name in ("ratio", "counts"):
        if isinstance(choices.get(name), Mapping):
            carried[name] = carried_over(first, by_group(first, choices[name], what=name), narrower)
    return {**choices, **carried}


def _whose(narrower: Findings, error: RewriteError) -> str:
    """The layers whose channels stay because of an error, and what to do about a size that is a number in code.

    narrower: the findings in which they are locked, by the last event.
    """
    slots = next((locked.slots for locked in narrower.locked if locked.event is narrower.events[-1]), {})
    layers = list(dict.fromkeys(name.rpartition(".")[0].split(".parametrizations.")[0] or name for name, _ in slots))
    named = ", ".join(layers[:FEW]) + (f" and {len(layers) - FEW} more" if len(layers) > FEW else "")
    told = f"; these channels are those of {named}" if layers else ""
    if not error.places:
        return told
    graph = ', or pass `prefer="graph"`' if narrower.captured.keeps_class else ""
    return f"{told}. Read that size from an attribute of the module, or from a tensor{graph}"


FEW = 4
"""The most layers that a reason names."""


def _resolved(analysis: Findings, request: Request, held: Mapping[str, str]) -> ResolvedPlan:
    """The plan of the request, made or applied to the analysis.

    held: sentences about the channels that were locked in earlier rounds -> their ends. They are added to the plan's
        reasons.
    """
    resolved = make_plan(analysis, **request.choices) if request.plan is None else resolve_plan(analysis, request.plan)
    _refuse_empty(analysis, resolved.removal)
    said = resolved.plan.reasons  # those about locked channels have the same cause, where nothing is left to remove
    new = [text + end for text, end in held.items() if not any(text.partition(": ")[2] in reason for reason in said)]
    return replace(resolved, plan=replace(resolved.plan, reasons=(*said, *new)))


def _proven(result: Result, resolved: ResolvedPlan, request: Request, made: Rewritten) -> Result:
    """The result with its error against the reference, if it has to be compared and can be."""
    analysis, decides = result.analysis, result.analysis.captured.real
    if not (request.verify or decides) or _weightless(analysis):
        return result
    try:
        proof = _proof(analysis, made, resolved)
    except NoReferenceError as error:
        if told := error_of_original(analysis):
            raise told from error
        if decides:
            raise CaptureError(
                "the model's forward raises", raised=True, why=str(error), do="check that it runs on these inputs"
            ) from error
        text = f"not compared with the reference, which does not run: {error}"
        return replace(result, plan=replace(result.plan, reasons=(*result.plan.reasons, text)), unproven=text)
    return replace(result, proof=proof, plan=replace(result.plan, reasons=(*result.plan.reasons, *proof.notes)))


def _proof(analysis: Findings, made: Rewritten, resolved: ResolvedPlan) -> Proof:
    """The proof of a small model. Raises `UnprovenError` if the model is wrong."""
    removal, zeroed = resolved.removal, resolved.zeroed
    try:
        folded = None if resolved.plan.zeroed is None else resolved.constants
        proof = prove(analysis, made.small, removal, zeroed, made.exact, made.factors, folded=folded)
    except VerificationError as error:
        raise UnprovenError(analysis, resolved, error) from error
    if proof.wrong is not None:
        raise UnprovenError(analysis, resolved, proof.wrong)
    return proof


class UnprovenError(VerificationError):
    """The small model is wrong. Internal: users get the `VerificationError` that `shown` or `diagnosed` makes of it."""

    def __init__(self, analysis: Findings, resolved: ResolvedPlan, error: VerificationError) -> None:
        self.analysis, self.resolved, self.error = analysis, resolved, error
        super().__init__(error.what, at=error.at, why=error.why, do=error.do)

    def shown(self) -> VerificationError:
        """The error for the user. The exception of a model that raised is its cause."""
        return self.error

    def diagnosed(self) -> VerificationError:
        """The error for the user, which names the first group whose removal alone gives a wrong model.

        This makes and compares a small model for each group.
        """
        error = self.error
        if self.resolved.plan.zeroed is not None:
            culprit = "a channel whose constant was folded"
        else:
            wrong = first_wrong_group(self._is_wrong, self.resolved.removal)
            culprit = f'group "{self.analysis.groups[wrong].name}"' if wrong >= 0 else ""
        culprit = culprit or "no group alone, only several together"
        named = VerificationError(
            error.what, at="; ".join(filter(None, (culprit, error.at))), why=error.why, do=error.do
        )
        named.__cause__ = error.__cause__
        return named

    def _is_wrong(self, channels: Any) -> bool:
        """True if the model in which only these channels are removed is wrong."""
        analysis = self.analysis
        part, removal = plan_from(analysis, channels, ()), Removal(analysis.solution, channels)
        try:
            made = rewrite(analysis, removal)
        except RewriteError:
            return False  # it cannot be made, so nothing is known of it
        try:
            proof = prove(analysis, made.small, removal, part.removed, made.exact, made.factors)
        except NoReferenceError:
            return False  # likewise
        except VerificationError:
            return True
        return proof.wrong is not None


def _refuse_empty(analysis: Findings, removal: Removal) -> None:
    for vector, least in analysis.observed.minima:
        if removal.count(vector) < least:
            raise PlanError(
                "the request leaves too few to choose from",
                why=f"{removal.count(vector)} of {vector.size} stay, and the model chooses {least} of them (topk)",
                do=f"keep at least {least} of them",
            )
    for vector in analysis.observed.vectors:
        if vector.size and not removal.count(vector):
            axes = (a for a in analysis.solution.axes if a.vector.representative is vector)
            named = next((f'"{a.parameter}" in dimension {a.dim}' for a in axes), "")
            raise PlanError(
                f"the request leaves {named or 'a tensor'} empty",
                why=f"all {vector.size} slots would go; masks of coupled layers add up",
                do="keep at least one channel in all of them",
            )


def _weightless(analysis: Findings) -> bool:
    return any(t.device.type == "meta" for t in analysis.tensors.values())
