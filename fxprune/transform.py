"""The pass: analyse, plan, rewrite, prove."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from fxprune.analysis import Analysis, analyze, hold
from fxprune.capture.pause import collector_paused
from fxprune.capture.twin import twin
from fxprune.channels.groups import Removal
from fxprune.check import TOLERANCE, compare, first_wrong_group, sensitivity
from fxprune.criteria import Importance
from fxprune.errors import CaptureError, NothingRemovedWarning, PlanError, RewriteError, VerificationError
from fxprune.planning.plan import Plan, choose, finish, removal_of
from fxprune.record import Record, attach, record
from fxprune.rewrite.graph import rewrite

BLURRED = 1e-3
"""Below this an error may be a rounding that the model amplifies; above it, it is an error."""


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
    strict: bool = False,
    verify: bool = True,
) -> fx.GraphModule:
    """A physically smaller model, in which the removed channels never existed.

    The original is only read. The result is a `torch.fx.GraphModule` with the original's parameter names, dtypes,
    devices, `requires_grad` flags and train/eval modes; shared parameters stay shared.

    Args:
        model: a traced `torch.fx.GraphModule`, or any module that symbolic tracing takes.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        plan: what goes, made by `analysis.plan(...)`; or say here what a plan is made from:
        ratio, masks, importance, ignore, round_to, exact, seed: see `fxprune.planning.plan.make_plan`.
        strict: raise at an operation without a rule instead of keeping its channels.
        verify: compare the result with its reference in float64 where the weights are real (see
            `fxprune.check`); shapes are always proven.

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
    request = {
        "ratio": ratio,
        "masks": masks,
        "importance": importance,
        "ignore": ignore,
        "round_to": round_to,
        "exact": exact,
        "seed": seed,
    }
    analysis = analyze(model, example_inputs, strict=strict)
    analysis, plan, removal, small = _shrink(analysis, plan, request, strict)
    if not plan:
        why = "; ".join(plan.reasons) or "the plan is empty"
        warnings.warn(f"nothing was removed: {why}", NothingRemovedWarning, stacklevel=2)
    error = _prove(analysis, small, removal, plan) if verify and not _weightless(analysis) else None
    attach(small, _recorded(analysis, small, removal, plan, error))
    return small


def _shrink(
    analysis: Analysis, plan: Plan | None, request: dict[str, Any], strict: bool
) -> tuple[Analysis, Plan, Removal, fx.GraphModule]:
    """Plan and rewrite. Where a node's sizes cannot be counted anew, its channels are locked and it starts over."""
    held: list[str] = []
    while True:
        if plan is None:
            removed, reasons = choose(analysis, **request)
            made, removal = finish(analysis, removed, (*reasons, *held)), Removal(analysis.solution, removed)
        else:
            made, removal = plan, removal_of(analysis, plan)
        _refuse_empty(analysis, removal)
        try:
            return analysis, made, removal, rewrite(analysis, removal)
        except RewriteError as error:
            narrower = hold(analysis, error.node, f"its sizes cannot be counted anew: {error.why}")
            if plan is not None or strict or narrower is None:
                raise
            held.append(f"channels stay at {error.at}: {error.why}")
            analysis = narrower


def verify(model: nn.Module, small: nn.Module, example_inputs: Any) -> float:
    """The largest relative error of `small`, made from `model` by `transform`, against its reference.

    Both run in float64 and evaluation mode on `example_inputs`, which may differ from those of `transform`. The
    reference is `masked(model, record(small).removed)`; where removal changed a statistic, that statistic is
    taken over the kept channels.

    Returns max |small - reference| / max |reference| over all outputs; inf where shapes differ or NaN appears.
    """
    if not isinstance(small, fx.GraphModule):
        raise CaptureError(f"{type(small).__name__} was not made by transform", do="pass what transform returned")
    removed, training = record(small).removed, record(small).training
    recorded = twin(model, lambda tensor: tensor)
    for name, module in recorded.named_modules():
        module.training = name in training
    analysis = analyze(recorded, example_inputs)
    removal = removal_of(analysis, Plan({k: dict(v) for k, v in removed.items()}))
    return compare(analysis, small, removal, removed)


def _prove(analysis: Analysis, small: fx.GraphModule, removal: Removal, plan: Plan) -> float:
    error = compare(analysis, small, removal, plan.removed)
    if error <= max(TOLERANCE, 100 * sensitivity(analysis, removal, plan.removed) if error < BLURRED else 0):
        return error

    def error_of(channels: Any) -> float:
        part = finish(analysis, channels, ())
        alone = Removal(analysis.solution, channels)
        return compare(analysis, rewrite(analysis, alone), alone, part.removed)

    wrong = first_wrong_group(error_of, removal)
    name = f'group "{analysis.groups[wrong].name}"' if wrong >= 0 else "no group alone, only several together"
    raise VerificationError(
        "the small model differs from its reference",
        at=name,
        why=f"the relative error is {error:.2e}, at most {TOLERANCE:.0e} is rounding",
        do="report this; until then `ignore` that group, its channels stay",
    )


def _refuse_empty(analysis: Analysis, removal: Removal) -> None:
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


def _recorded(analysis: Analysis, small: fx.GraphModule, removal: Removal, plan: Plan, error: float | None) -> Record:
    reasons = list(plan.reasons)
    inexact = analysis.inexact & removal.removed
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
    after = {name: tuple(t.shape) for name, t in state.items()}
    training = tuple(name for name, module in analysis.model.named_modules() if module.training)
    return Record("fx", plan.removed, not inexact.any(), before, after, tuple(reasons), training, error)
