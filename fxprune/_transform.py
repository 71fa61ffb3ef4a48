"""The pass: analyse, plan, rewrite, prove."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from fxprune._analyze import analyze
from fxprune._attempt import Request, Result, UnprovenError, attempt
from fxprune._record import Record, attach, record
from fxprune.capture.captured import FrontEnd
from fxprune.capture.module_copy import copy_module
from fxprune.capture.process_state import public_call
from fxprune.capture.tensors import PARAMETER, Tensors
from fxprune.costs import cost_of
from fxprune.criteria import Importance
from fxprune.errors import CaptureError, FxpruneError, NothingRemovedWarning, PlanError, RewriteError
from fxprune.fold import folds, resolve_plan
from fxprune.paths import Outcome, paths_for, telling_error, try_in_turn, without_hooks
from fxprune.planning.plan import Plan
from fxprune.planning.structure import structure_of
from fxprune.proof.compare import compare
from fxprune.rewrite.derived import derived
from fxprune.rewrite.norms import rescaled


@public_call()
def transform(
    model: nn.Module,
    example_inputs: Any,
    *,
    plan: Plan | None = None,
    ratio: float | Mapping[str, float] | None = None,
    masks: Mapping[str, Any] | str | None = None,
    bias: str | None = None,
    border: str = "carrier",
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
    and train/eval modes; shared parameters stay shared. What it is depends on the path that was taken, the first of
    these that removes everything that was asked for and is proven right (`record(small).path` names it,
    `record(small).why_not` says what was wrong with those before it):

    - "fx": symbolic tracing; a `torch.fx.GraphModule`;
    - "eager": the model's own class, with smaller parameters and recounted attributes;
    - "export": `torch.export`; a `GraphModule` of ATen operations;
    - "hooks": the model's own class, the outputs of smaller layers put back among zeros by forward hooks.

    Args:
        model: any module, or a traced `torch.fx.GraphModule`.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        plan: the channels to remove, made by `analysis.plan(...)` or loaded from a file; the path that it was made on
            is tried first. Or say here what a plan is made from:
        ratio, masks, importance, ignore, round_to, exact, seed: see `fxprune.planning.choose.choose`.
        bias: the part of a channel that is removed. "prune": everything, it never existed. "fold": its weights; the
            constant that its bias, the shift of a norm or an activation at zero then makes of it goes exactly into the
            layers that read it, and where that is not possible the channel stays. masks="zeros" with "fold", which is
            the default there, removes whatever has no influence or a constant one, and computes the same function.
        border: where zeros are padded, a constant is another one near the border. "carrier" keeps one of the constant
            channels, which takes the others along; costs that channel. "map" adds a map of constants to the result of
            the layer; costs an addition, out_channels x height x width numbers, and takes inputs of the example's
            height and width only, in a graph.
        also: more example inputs, for a forward that does other things on them; what holds for one holds for all.
        strict: raise at an operation without a rule instead of keeping its channels.
        verify: compare the result with its reference in float64 where the weights are real (see
            `fxprune.proof`); shapes are always proven. A forward that decides by numbers is always compared: its
            shapes cannot be proven.
        path: take this path or raise.
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
    if plan is not None and not (ratio is None and masks is None and bias is None):
        raise PlanError("a plan says already what goes", why="ratio, masks or bias were given too", do="pass the plan")
    paths = paths_for(model, path, prefer, made_on=plan.path if isinstance(plan, Plan) else "")
    if folds(bias, masks) and all(front_end.needs_hooks for front_end in paths):
        raise PlanError("constants cannot be folded behind hooks", why="they put zeros back", do="take another path")
    choices: dict[str, Any] = {
        "ratio": ratio,
        "masks": masks,
        "bias": bias,
        "border": border,
        "importance": importance,
        "ignore": ignore,
        "round_to": round_to,
        "exact": exact,
        "seed": seed,
    }
    request = Request(plan, choices, also, strict, verify, norms)
    result = _first_result(model, example_inputs, request, paths)
    if not result.plan:
        why = "; ".join(result.plan.reasons) or "the plan is empty"
        warnings.warn(f"nothing was removed: {why}", NothingRemovedWarning, stacklevel=3)
    attach(result.small, _recorded(result))
    return result.small


def _first_result(model: nn.Module, example_inputs: Any, request: Request, paths: Sequence[FrontEnd]) -> Result:
    """The result of the first path that does all that is asked for.

    If there is none, some channels are held: the first path on which the rest can be rewritten. Hooks come last.
    """

    def attempted(path: FrontEnd, *, locking: bool = False) -> Result:
        options: dict[str, Any] = {"also": request.also, "strict": request.strict, "norms": request.norms}
        return attempt(analyze(model, example_inputs, path=path.name, **options), request, locking=locking)

    def goes_on(path: FrontEnd, error: FxpruneError) -> bool:
        if isinstance(error, PlanError):  # a plan that was made for the first path may be none for the others
            return request.plan is not None and path is not paths[0]
        return isinstance(error, CaptureError | RewriteError | UnprovenError)

    usual = without_hooks(paths)
    found = try_in_turn(usual, attempted, goes_on=goes_on)
    if found.result is None and request.plan is None and not request.strict:
        recountable = [path for path in usual if isinstance(found.errors.get(path.name), RewriteError)]
        found = try_in_turn(recountable, partial(attempted, locking=True), goes_on=goes_on, before=found)
    if found.result is None and found.model_runs and not _wrong(found):
        behind_hooks = [path for path in paths if path not in usual]
        found = try_in_turn(behind_hooks, attempted, goes_on=goes_on, before=found)
    if found.result is None:
        raise _shown(found)
    return replace(found.result, why_not=_why_not(found, found.result))


def _wrong(found: Outcome[Result]) -> list[UnprovenError]:
    """The errors of paths that made a wrong model, although they know all sizes before."""
    unproven = (error for error in found.errors.values() if isinstance(error, UnprovenError))
    return [error for error in unproven if not error.analysis.captured.real]


def _shown(found: Outcome[Result]) -> FxpruneError:
    """The error that a user sees where no path gave a result."""
    wrong = _wrong(found)
    if wrong:
        return wrong[0].diagnosed()
    error = telling_error(list(found.errors.values()))
    return error.shown() if isinstance(error, UnprovenError) else error


def _why_not(found: Outcome[Result], result: Result) -> dict[str, str]:
    """Path -> why it was not taken, in one line, for the paths that were tried and failed."""
    return {
        path: "; ".join(part for part in (error.what, error.at, error.why) if part)
        for path, error in found.errors.items()
        if path != result.analysis.captured.path
    }


@public_call()
def verify(model: nn.Module, small: nn.Module, example_inputs: Any) -> float:
    """The largest relative error of `small`, made from `model` by `transform`, against its reference.

    Both run in float64 and evaluation mode on `example_inputs`, which may differ from those of `transform`. The
    reference is `masked(model, record(small).zeroed)`; where removal changed a statistic (see `norms` of
    `transform`), that statistic is taken over the kept channels.

    Returns max |small - reference| / max |reference| over all outputs; inf where shapes differ or NaN appears.
    """
    made = record(small)
    recorded = copy_module(model, lambda tensor: tensor)
    for name, module in recorded.named_modules():
        module.training = name in made.training
    analysis = analyze(recorded, example_inputs, path=made.path, norms=made.norms)
    resolved = resolve_plan(analysis, replace(made.plan, structure=None))
    exact = {**rescaled(analysis, resolved.removal), **resolved.constants.exact}
    return compare(analysis, small, resolved.removal, resolved.zeroed, exact)


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
    state = Tensors.of(small)
    before = {name: tuple(tensor.shape) for key, tensor in analysis.tensors.items() for name in analysis.names_of(key)}
    absent = [name for name in analysis.subject.tensors.names(PARAMETER) if name not in state]
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
        _complete(result),
        (cost_of(analysis), cost_of(analysis, result.removal, result.constants)),
    )


def _complete(result: Result) -> Plan:
    """The plan with all that is known of it after the rewrite."""
    analysis, small, plan = result.analysis, result.small, result.plan
    structure = plan.structure
    if structure is None or not structure.coupled:
        structure = structure_of(analysis, result.removal.removed, plan.removed)
    return replace(plan, sizes=derived(analysis, small), structure=structure, path=analysis.captured.path)
