"""The ladder: the ways in which a model can become smaller, tried in turn until one does all and is proven right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from fxprune._analyze import Analysis, analyze, telling
from fxprune.analysis.folded_constants import Constants
from fxprune.analysis.hold import hold
from fxprune.capture.front import PATHS
from fxprune.channels.groups import Removal
from fxprune.errors import CaptureError, FxpruneError, PlanError, RewriteError, VerificationError
from fxprune.fold import Planned, carry_out, make_plan
from fxprune.planning.channels import plan_from
from fxprune.planning.plan import Plan
from fxprune.proof.compare import TOLERANCE, NoReferenceError, compare, first_wrong_group, rounding_amplification
from fxprune.rewrite.graph import rewrite
from fxprune.rewrite.norms import rescaled

BLURRED = 1e-3
"""Below this an error may be a rounding that the model amplifies; above it, it is an error."""

LADDERS = {
    None: ("fx", "eager", "export", "hooks"),
    "graph": ("fx", "export", "eager", "hooks"),
    "class": ("eager", "fx", "export", "hooks"),
}
"""By `prefer`, the rungs in the order in which they are tried."""


@dataclass(frozen=True)
class Request:
    """What the caller of `transform` asks for."""

    plan: Plan | None
    choices: dict[str, Any]
    also: Sequence[Any]
    strict: bool
    verify: bool
    norms: str


@dataclass(frozen=True)
class Result:
    """A small model and how it came about."""

    analysis: Analysis
    plan: Plan
    removal: Removal
    small: nn.Module
    error: float | None
    why_not: dict[str, str]
    constants: Constants


def rungs_of(model: nn.Module, path: str | None, prefer: str | None) -> tuple[str, ...]:
    """The rungs to try, in order. Raises `PlanError` for names that do not exist."""
    if path is not None and prefer is not None:
        raise PlanError("path says already which way to take", why="prefer was given too", do="pass one of them")
    if path is not None and path not in PATHS:
        raise PlanError(f"there is no path {path!r}", why=f"the paths are {', '.join(PATHS)}")
    if prefer not in LADDERS:
        raise PlanError(f"there is no preference {prefer!r}", why='prefer is "class" or "graph"')
    if path is not None:
        return (path,)
    return ("fx",) if isinstance(model, fx.GraphModule) else LADDERS[prefer]


def climb(model: nn.Module, example_inputs: Any, request: Request, rungs: tuple[str, ...]) -> Result:
    """The first rung that does all that is asked for; failing that, the first that does it but for some channels."""
    errors: dict[str, FxpruneError] = {}

    def attempt(rung: str, *, holding: bool = False) -> Result | None:
        try:
            options: dict[str, Any] = {"also": request.also, "strict": request.strict, "norms": request.norms}
            analysis = analyze(model, example_inputs, path=rung, **options)
            why_not = {other: _line(error) for other, error in errors.items() if other != rung}
            return _attempt(analysis, request, why_not, holding=holding)
        except (CaptureError, RewriteError, _UnprovenError) as error:
            errors[rung] = error
        except PlanError as error:  # a plan that was made for the first rung may be none for the others
            if request.plan is None or not errors:
                raise
            errors[rung] = error
        return None

    for rung in rungs:
        if rung == "hooks" and len(rungs) > 1:
            break
        if isinstance(errors.get("eager"), CaptureError):
            continue  # the model itself does not run
        if result := attempt(rung):
            return result
    for rung, error in list(errors.items()):
        may_hold = isinstance(error, RewriteError) and request.plan is None and not request.strict
        if may_hold and (result := attempt(rung, holding=True)):
            return result
    unproven = [e for e in errors.values() if isinstance(e, _UnprovenError) and not e.analysis.captured.real]
    runs = not isinstance(errors.get("eager"), CaptureError)
    if "hooks" in rungs and runs and not unproven and (result := attempt("hooks")):
        return result
    for error in unproven:
        raise error.diagnosed()
    captures = [error for error in errors.values() if isinstance(error, CaptureError)]
    raise next((error for error in errors.values() if not isinstance(error, CaptureError)), None) or telling(captures)


def _line(error: FxpruneError) -> str:
    return "; ".join(part for part in (error.what, error.at, error.why) if part)


def _attempt(analysis: Analysis, request: Request, why_not: dict[str, str], *, holding: bool = False) -> Result:
    """Plan, rewrite, prove. With `holding`, channels that cannot be rewritten are locked, and it starts over."""
    held: list[str] = []
    while True:
        planned = make_plan(analysis, **request.choices) if request.plan is None else carry_out(analysis, request.plan)
        plan, removal = replace(planned.plan, reasons=(*planned.plan.reasons, *held)), planned.removal
        _refuse_empty(analysis, removal)
        try:
            small = rewrite(analysis, removal, planned.constants)
        except RewriteError as error:
            narrower = hold(analysis, error) if holding else None
            if narrower is None:
                raise
            held.append(f"channels stay at {error.at}: {error.why}")
            analysis = narrower
            continue
        result = Result(analysis, plan, removal, small, None, why_not, planned.constants)
        if not (request.verify or analysis.captured.real) or _weightless(analysis):
            return result
        try:
            return replace(result, error=_prove(analysis, small, planned))
        except NoReferenceError as error:
            if analysis.captured.real:
                raise CaptureError(
                    "the model's forward raises", raised=True, why=str(error), do="check that it runs on these inputs"
                ) from error
            text = f"not compared with the reference, which does not run in float64: {error}"
            return replace(result, plan=replace(plan, reasons=(*plan.reasons, text)))


def _prove(analysis: Analysis, small: nn.Module, planned: Planned) -> float:
    removal, zeroed = planned.removal, planned.zeroed
    exact = {**rescaled(analysis, removal), **planned.constants.exact}
    error = compare(analysis, small, removal, zeroed, exact)
    if error <= TOLERANCE or (error < BLURRED and error <= 100 * rounding_amplification(analysis, removal, zeroed)):
        return error
    raise _UnprovenError(analysis, planned, error)


class _UnprovenError(VerificationError):
    """A small model that is wrong, before anybody asked which group is to blame."""

    def __init__(self, analysis: Analysis, planned: Planned, error: float, at: str = "") -> None:
        self.analysis, self.planned, self.error = analysis, planned, error
        super().__init__(
            "the small model differs from its reference",
            at=at,
            why=f"the relative error is {error:.2e}, at most {TOLERANCE:.0e} is rounding",
            do="report this; until then `ignore` that group, its channels stay",
        )

    def diagnosed(self) -> VerificationError:
        """The same, naming the first group whose removal alone goes wrong."""
        analysis, planned = self.analysis, self.planned
        if planned.plan.zeroed is not None:
            return _UnprovenError(analysis, planned, self.error, "a channel whose constant was folded")

        def error_of(channels: Any) -> float:
            part = plan_from(analysis, channels, ())
            alone = Removal(analysis.solution, channels)
            return compare(analysis, rewrite(analysis, alone), alone, part.removed, rescaled(analysis, alone))

        wrong = first_wrong_group(error_of, planned.removal)
        name = f'group "{analysis.groups[wrong].name}"' if wrong >= 0 else "no group alone, only several together"
        return _UnprovenError(analysis, planned, self.error, name)


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
