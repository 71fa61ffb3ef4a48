"""One attempt of `transform`, on one path: plan, rewrite, prove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fxprune._analyze import Analysis
from fxprune.analysis.folded_constants import FoldedConstants
from fxprune.analysis.lock_channels import lock_channels
from fxprune.channels.groups import Removal
from fxprune.errors import CaptureError, PlanError, RewriteError, VerificationError
from fxprune.fold import ResolvedPlan, make_plan, resolve_plan
from fxprune.planning.channels import plan_from
from fxprune.planning.plan import Plan
from fxprune.proof.compare import TOLERANCE, NoReferenceError, compare, first_wrong_group, rounding_amplification
from fxprune.rewrite.factors import factors_of
from fxprune.rewrite.graph import Rewritten, rewrite

BLURRED = 1e-3
"""An error above this is never explained by rounding. An error below it can be a rounding that the model amplifies."""


@dataclass(frozen=True)
class Request:
    """The arguments of `transform` that do not depend on the path.

    plan: the plan to apply, None if one is made from `choices`.
    choices: the options of `make_plan`: ratio, masks, importance and so on.
    also, strict, verify, norms: as in `transform`.
    """

    plan: Plan | None
    choices: dict[str, Any]
    also: Sequence[Any]
    strict: bool
    verify: bool
    norms: str


@dataclass(frozen=True)
class Result:
    """A small model, and how it was made.

    analysis: the analysis that it was made from; some channels may be locked that could not be rewritten.
    plan, removal: the removed channels, as a plan and as flags.
    error: the relative error against the reference, None if it was not compared.
    constants: the constants that were folded.
    why_not: name of a path that was tried before -> why it was not taken.
    """

    analysis: Analysis
    plan: Plan
    removal: Removal
    small: nn.Module
    error: float | None
    constants: FoldedConstants
    why_not: dict[str, str] = field(default_factory=dict)


def attempt(analysis: Analysis, request: Request, *, locking: bool = False) -> Result:
    """Make a plan, rewrite the model and prove it, from an analysis on one path.

    locking: True to lock channels that cannot be rewritten and to start again without them; False to raise the error.

    Raises `UnprovenError` if the small model is wrong, `RewriteError` if a size cannot be recounted, `CaptureError` if
    the forward raises, `PlanError` if the plan cannot be applied.
    """
    held: list[str] = []
    while True:
        resolved = _resolved(analysis, request, held)
        try:
            made = rewrite(analysis, resolved.removal, resolved.constants)
        except RewriteError as error:
            narrower = lock_channels(analysis, error) if locking else None
            if narrower is None:
                raise
            held.append(f"channels stay at {error.at}: {error.why}")
            analysis = narrower
            continue
        plan = replace(resolved.plan, factors=factors_of(analysis, resolved.removal, made.factors))
        result = Result(analysis, plan, resolved.removal, made.small, None, resolved.constants)
        return _proven(result, resolved, request, made)


def _resolved(analysis: Analysis, request: Request, held: Sequence[str]) -> ResolvedPlan:
    """The plan of the request, made or applied to the analysis.

    held: sentences about the channels that were locked in earlier rounds; they are added to the plan's reasons.
    """
    resolved = make_plan(analysis, **request.choices) if request.plan is None else resolve_plan(analysis, request.plan)
    _refuse_empty(analysis, resolved.removal)
    return replace(resolved, plan=replace(resolved.plan, reasons=(*resolved.plan.reasons, *held)))


def _proven(result: Result, resolved: ResolvedPlan, request: Request, made: Rewritten) -> Result:
    """The result with its error against the reference, if it has to be compared and can be."""
    analysis, decides = result.analysis, result.analysis.captured.real
    if not (request.verify or decides) or _weightless(analysis):
        return result
    try:
        return replace(result, error=_error(analysis, made, resolved))
    except NoReferenceError as error:
        if decides:
            raise CaptureError(
                "the model's forward raises", raised=True, why=str(error), do="check that it runs on these inputs"
            ) from error
        text = f"not compared with the reference, which does not run in float64: {error}"
        return replace(result, plan=replace(result.plan, reasons=(*result.plan.reasons, text)))


def _error(analysis: Analysis, made: Rewritten, resolved: ResolvedPlan) -> float:
    """The relative error of the small model. Raises `UnprovenError` if it is too large for rounding."""
    removal, zeroed = resolved.removal, resolved.zeroed
    error = compare(analysis, made.small, removal, zeroed, made.exact, made.factors)
    if error <= TOLERANCE or (error < BLURRED and error <= 100 * rounding_amplification(analysis, removal, zeroed)):
        return error
    raise UnprovenError(analysis, resolved, error)


class UnprovenError(VerificationError):
    """The small model is wrong. Internal: users get the `VerificationError` that `shown` or `diagnosed` makes of it."""

    def __init__(self, analysis: Analysis, resolved: ResolvedPlan, error: float) -> None:
        self.analysis, self.resolved, self.error = analysis, resolved, error
        super().__init__(**self._parts())

    def _parts(self, at: str = "") -> dict[str, str]:
        return {
            "what": "the small model differs from its reference",
            "at": at,
            "why": f"the relative error is {self.error:.2e}, at most {TOLERANCE:.0e} is rounding",
            "do": "report this; until then `ignore` that group, its channels stay",
        }

    def shown(self) -> VerificationError:
        """The error for the user."""
        return VerificationError(**self._parts())

    def diagnosed(self) -> VerificationError:
        """The error for the user, which names the first group whose removal alone gives a wrong model.

        This makes and compares a small model for each group.
        """
        if self.resolved.plan.zeroed is not None:
            return VerificationError(**self._parts("a channel whose constant was folded"))
        wrong = first_wrong_group(self._error_of, self.resolved.removal)
        alone = f'group "{self.analysis.groups[wrong].name}"' if wrong >= 0 else ""
        return VerificationError(**self._parts(alone or "no group alone, only several together"))

    def _error_of(self, channels: Any) -> float:
        """The relative error of a model in which only these channels are removed."""
        analysis = self.analysis
        part, removal = plan_from(analysis, channels, ()), Removal(analysis.solution, channels)
        made = rewrite(analysis, removal)
        return compare(analysis, made.small, removal, part.removed, made.exact, made.factors)


def _refuse_empty(analysis: Analysis, removal: Removal) -> None:
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


def _weightless(analysis: Analysis) -> bool:
    return any(t.device.type == "meta" for t in analysis.tensors.values())
