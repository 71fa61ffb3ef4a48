"""The pass: analyse, plan, rewrite, prove."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from fxprune.analysis import Analysis, analyze, hold, telling
from fxprune.capture.front import PATHS
from fxprune.capture.pause import collector_paused
from fxprune.capture.twin import twin
from fxprune.channels.groups import Removal
from fxprune.check import TOLERANCE, IncomparableError, compare, first_wrong_group, sensitivity
from fxprune.criteria import Importance
from fxprune.errors import (
    CaptureError,
    FxpruneError,
    NothingRemovedWarning,
    PlanError,
    RewriteError,
    VerificationError,
)
from fxprune.planning.plan import Plan, choose, finish, removal_of
from fxprune.record import Record, attach, record
from fxprune.rewrite.graph import rewrite

BLURRED = 1e-3
"""Below this an error may be a rounding that the model amplifies; above it, it is an error."""

LADDERS = {
    None: ("fx", "eager", "export", "hooks"),
    "graph": ("fx", "export", "eager", "hooks"),
    "class": ("eager", "fx", "export", "hooks"),
}
"""By `prefer`, the rungs in the order in which they are tried."""


@collector_paused()
def transform(
    model: nn.Module,
    example_inputs: Any,
    *,
    plan: Plan | None = None,
    ratio: float | Mapping[str, float] | None = None,
    masks: Mapping[str, Any] | None = None,
    importance: Importance = "l2",
    ignore: Any = (),
    round_to: int = 1,
    exact: bool = False,
    seed: int | None = None,
    also: Sequence[Any] = (),
    strict: bool = False,
    verify: bool = True,
    path: str | None = None,
    prefer: str | None = None,
    norms: str = "kept",
) -> nn.Module:
    """A physically smaller model, in which the removed channels never existed.

    The original is only read. The result has the original's parameter names, dtypes, devices, `requires_grad` flags
    and train/eval modes; shared parameters stay shared. What it is depends on the way that was taken, the first of
    these that removes everything that was asked for and is proven right (`record(small).path` names it,
    `record(small).why_not` says what was wrong with those before it):

    - "fx": symbolic tracing; a `torch.fx.GraphModule`;
    - "eager": the model's own class, with smaller parameters and attributes that count anew;
    - "export": `torch.export`; a `GraphModule` of ATen operations.

    Args:
        model: any module, or a traced `torch.fx.GraphModule`.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        plan: what goes, made by `analysis.plan(...)`; or say here what a plan is made from:
        ratio, masks, importance, ignore, round_to, exact, seed: see `fxprune.planning.plan.make_plan`.
        also: more example inputs, for a forward that does other things on them; what holds for one holds for all.
        strict: raise at an operation without a rule instead of keeping its channels.
        verify: compare the result with its reference in float64 where the weights are real (see
            `fxprune.check`); shapes are always proven. A forward that decides by numbers is always compared: its
            shapes cannot be proven.
        path: take this way or raise.
        prefer: "class" keeps the class where that is possible, "graph" makes a graph where that is possible; without
            it a graph by tracing, else the class, else a graph by export.
        norms: "kept" takes a statistic over the channels that are left; "preserve" goes on counting the original
            width where that is exactly possible (layer norms, RMS norms, means over what is zero where it is gone),
            so that the result equals the masked original there, and such groups are exact.

    Raises `FxpruneError` of some kind, before anything is changed. Warns with `NothingRemovedWarning`, and says
    why, when nothing could be removed.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 3))
    >>> small = fxprune.transform(net.eval(), torch.randn(1, 3, 8, 8), ratio=0.5)
    >>> small.get_submodule("0"), small.get_submodule("1").num_features
    (Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1)), 4)
    """
    if plan is not None and (ratio is not None or masks is not None):
        raise PlanError("a plan says already what goes", why="ratio or masks were given too", do="pass one of them")
    choices: dict[str, Any] = {
        "ratio": ratio,
        "masks": masks,
        "importance": importance,
        "ignore": ignore,
        "round_to": round_to,
        "exact": exact,
        "seed": seed,
    }
    request = Request(plan, choices, also, strict, verify, norms)
    result = _climb(model, example_inputs, request, _rungs(model, path, prefer))
    if not result.plan:
        why = "; ".join(result.plan.reasons) or "the plan is empty"
        warnings.warn(f"nothing was removed: {why}", NothingRemovedWarning, stacklevel=3)
    attach(result.small, _recorded(result))
    return result.small


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


def _rungs(model: nn.Module, path: str | None, prefer: str | None) -> tuple[str, ...]:
    if path is not None and prefer is not None:
        raise PlanError("path says already which way to take", why="prefer was given too", do="pass one of them")
    if path is not None and path not in PATHS:
        raise PlanError(f"there is no path {path!r}", why=f"the paths are {', '.join(PATHS)}")
    if prefer not in LADDERS:
        raise PlanError(f"there is no preference {prefer!r}", why='prefer is "class" or "graph"')
    if path is not None:
        return (path,)
    return ("fx",) if isinstance(model, fx.GraphModule) else LADDERS[prefer]


def _climb(model: nn.Module, example_inputs: Any, request: Request, rungs: tuple[str, ...]) -> Result:
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
        if request.plan is None:
            removed, reasons = choose(analysis, **request.choices)
            plan, removal = finish(analysis, removed, (*reasons, *held)), Removal(analysis.solution, removed)
        else:
            plan, removal = request.plan, removal_of(analysis, request.plan)
        _refuse_empty(analysis, removal)
        try:
            small = rewrite(analysis, removal)
        except RewriteError as error:
            narrower = hold(analysis, error) if holding else None
            if narrower is None:
                raise
            held.append(f"channels stay at {error.at}: {error.why}")
            analysis = narrower
            continue
        result = Result(analysis, plan, removal, small, None, why_not)
        if not (request.verify or analysis.captured.real) or _weightless(analysis):
            return result
        try:
            return replace(result, error=_prove(analysis, small, removal, plan))
        except IncomparableError as error:
            if analysis.captured.real:
                raise CaptureError(
                    "the model's forward raises", raised=True, why=str(error), do="check that it runs on these inputs"
                ) from error
            text = f"not compared with the reference, which does not run in float64: {error}"
            return replace(result, plan=replace(plan, reasons=(*plan.reasons, text)))


def verify(model: nn.Module, small: nn.Module, example_inputs: Any) -> float:
    """The largest relative error of `small`, made from `model` by `transform`, against its reference.

    Both run in float64 and evaluation mode on `example_inputs`, which may differ from those of `transform`. The
    reference is `masked(model, record(small).removed)`; where removal changed a statistic (see `norms` of
    `transform`), that statistic is taken over the kept channels.

    Returns max |small - reference| / max |reference| over all outputs; inf where shapes differ or NaN appears.
    """
    made = record(small)
    recorded = twin(model, lambda tensor: tensor)
    for name, module in recorded.named_modules():
        module.training = name in made.training
    analysis = analyze(recorded, example_inputs, path=made.path, norms=made.norms)
    removal = removal_of(analysis, Plan({k: dict(v) for k, v in made.removed.items()}))
    return compare(analysis, small, removal, made.removed)


def _prove(analysis: Analysis, small: nn.Module, removal: Removal, plan: Plan) -> float:
    error = compare(analysis, small, removal, plan.removed)
    if error <= max(TOLERANCE, 100 * sensitivity(analysis, removal, plan.removed) if error < BLURRED else 0):
        return error
    raise _UnprovenError(analysis, removal, error)


class _UnprovenError(VerificationError):
    """A small model that is wrong, before anybody asked which group is to blame."""

    def __init__(self, analysis: Analysis, removal: Removal, error: float, at: str = "") -> None:
        self.analysis, self.removal, self.error = analysis, removal, error
        super().__init__(
            "the small model differs from its reference",
            at=at,
            why=f"the relative error is {error:.2e}, at most {TOLERANCE:.0e} is rounding",
            do="report this; until then `ignore` that group, its channels stay",
        )

    def diagnosed(self) -> VerificationError:
        """The same, naming the first group whose removal alone goes wrong."""
        analysis = self.analysis

        def error_of(channels: Any) -> float:
            part = finish(analysis, channels, ())
            alone = Removal(analysis.solution, channels)
            return compare(analysis, rewrite(analysis, alone), alone, part.removed)

        wrong = first_wrong_group(error_of, self.removal)
        name = f'group "{analysis.groups[wrong].name}"' if wrong >= 0 else "no group alone, only several together"
        return _UnprovenError(analysis, self.removal, self.error, name)


def _refuse_empty(analysis: Analysis, removal: Removal) -> None:
    for vector, least in analysis.minima:
        if removal.count(vector) < least:
            raise PlanError(
                "the request leaves too few to choose from",
                why=f"{removal.count(vector)} of {vector.size} stay, and the model chooses {least} of them (topk)",
                do=f"keep at least {least} of them",
            )
    for vector in analysis.vectors:
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


def _recorded(result: Result) -> Record:
    analysis, small, plan = result.analysis, result.small, result.plan
    reasons = [*plan.reasons, *analysis.notes]
    inexact = analysis.inexact & result.removal.removed
    if inexact.any():
        changed = dict.fromkeys(
            f"{event.op} in {event.module or 'the model'}: {event.why}"
            for event in analysis.marked_by(inexact.nonzero()[0])
        )
        reasons += [f"a statistic changed: {text}" for text in changed]
    state = {
        **dict(small.named_parameters(remove_duplicate=False)),
        **dict(small.named_buffers(remove_duplicate=False)),
    }
    before = {
        name: tuple(tensor.shape)
        for key, tensor in analysis.tensors.items()
        for name in (key, *analysis.aliases.get(key, ()))
    }
    absent = [name for name, _ in analysis.model.named_parameters() if name not in state]
    if absent:
        mode = "training" if analysis.model.training else "evaluation"
        listed = ", ".join(absent[:4]) + (", ..." if len(absent) > 4 else "")
        reasons.append(f"left out, because the forward does not use them in {mode} mode: {listed}")
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
        result.error,
        result.why_not,
        "kept" if analysis.preserved is None else "preserve",
    )
