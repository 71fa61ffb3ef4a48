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
from fxprune.rewrite.graph import rewrite
from fxprune.rewrite.norms import rescaled

BLURRED = 1e-3
"""Below this an error may be a rounding that the model amplifies; above it, it is an error."""


@dataclass(frozen=True)
class Request:
    """The arguments of `transform` that do not depend on the path.

    choices: what a plan is made from, where there is none.
    """

    plan: Plan | None
    choices: dict[str, Any]
    also: Sequence[Any]
    strict: bool
    verify: bool
    norms: str


@dataclass(frozen=True)
class Result:
    """A small model and how it came about.

    error: against the reference, None where it was not compared. why_not: path -> why it was not taken.
    """

    analysis: Analysis
    plan: Plan
    removal: Removal
    small: nn.Module
    error: float | None
    constants: FoldedConstants
    why_not: dict[str, str] = field(default_factory=dict)


def attempt(analysis: Analysis, request: Request, *, locking: bool = False) -> Result:
    """Plan, rewrite and prove, from an analysis on one path.

    locking: channels that cannot be rewritten are locked, and the attempt starts over without them.

    Raises `UnprovenError` where the small model is wrong, `RewriteError` where a size cannot be recounted,
    `CaptureError` where the forward raises, `PlanError` for a plan that cannot be carried out.
    """
    held: list[str] = []
    while True:
        resolved = _resolved(analysis, request, held)
        try:
            small = rewrite(analysis, resolved.removal, resolved.constants)
        except RewriteError as error:
            narrower = lock_channels(analysis, error) if locking else None
            if narrower is None:
                raise
            held.append(f"channels stay at {error.at}: {error.why}")
            analysis = narrower
            continue
        made = Result(analysis, resolved.plan, resolved.removal, small, None, resolved.constants)
        return _proven(made, resolved, request)


def _resolved(analysis: Analysis, request: Request, held: Sequence[str]) -> ResolvedPlan:
    """The plan, made or carried out, with the reasons of channels that were held before."""
    resolved = make_plan(analysis, **request.choices) if request.plan is None else resolve_plan(analysis, request.plan)
    _refuse_empty(analysis, resolved.removal)
    return replace(resolved, plan=replace(resolved.plan, reasons=(*resolved.plan.reasons, *held)))


def _proven(result: Result, resolved: ResolvedPlan, request: Request) -> Result:
    """The result with its error against the reference, where it can be compared."""
    analysis, decides = result.analysis, result.analysis.captured.real
    if not (request.verify or decides) or _weightless(analysis):
        return result
    try:
        return replace(result, error=_error(analysis, result.small, resolved))
    except NoReferenceError as error:
        if decides:
            raise CaptureError(
                "the model's forward raises", raised=True, why=str(error), do="check that it runs on these inputs"
            ) from error
        text = f"not compared with the reference, which does not run in float64: {error}"
        return replace(result, plan=replace(result.plan, reasons=(*result.plan.reasons, text)))


def _error(analysis: Analysis, small: nn.Module, resolved: ResolvedPlan) -> float:
    """The relative error of the small model. Raises `UnprovenError` where it is more than rounding."""
    removal, zeroed = resolved.removal, resolved.zeroed
    exact = {**rescaled(analysis, removal), **resolved.constants.exact}
    error = compare(analysis, small, removal, zeroed, exact)
    if error <= TOLERANCE or (error < BLURRED and error <= 100 * rounding_amplification(analysis, removal, zeroed)):
        return error
    raise UnprovenError(analysis, resolved, error)


class UnprovenError(VerificationError):
    """A wrong small model. It stays inside: a user sees the `VerificationError` that `shown` or `diagnosed` makes."""

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
        """The error without its findings."""
        return VerificationError(**self._parts())

    def diagnosed(self) -> VerificationError:
        """The error with the first group whose removal alone goes wrong."""
        if self.resolved.plan.zeroed is not None:
            return VerificationError(**self._parts("a channel whose constant was folded"))
        wrong = first_wrong_group(self._error_of, self.resolved.removal)
        alone = f'group "{self.analysis.groups[wrong].name}"' if wrong >= 0 else ""
        return VerificationError(**self._parts(alone or "no group alone, only several together"))

    def _error_of(self, channels: Any) -> float:
        """The error where these channels alone are removed."""
        analysis = self.analysis
        part, removal = plan_from(analysis, channels, ()), Removal(analysis.solution, channels)
        return compare(analysis, rewrite(analysis, removal), removal, part.removed, rescaled(analysis, removal))


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
