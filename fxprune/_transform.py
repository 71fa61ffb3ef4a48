"""`transform` and `verify`, the functions that users call, and the record that a small model gets."""

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
from fxprune.errors import CaptureError, FixedSizesWarning, FxpruneError, NothingRemovedWarning, PlanError, RewriteError
from fxprune.fold import folds, resolve_plan
from fxprune.paths import Outcome, most_useful_error, paths_for, try_in_turn, without_hooks
from fxprune.planning.plan import Plan
from fxprune.planning.structure import structure_of
from fxprune.proof.compare import compare
from fxprune.rewrite.derived import derived
from fxprune.rewrite.missing_graph import explain_missing_graph
from fxprune.rewrite.norms import rescaled
from fxprune.rewrite.references import references_to_original
from fxprune.rewrite.tensor_hooks import left_out


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
    """A smaller model, which computes what the original would compute if the removed channels had never existed.

    The original is not changed. The result has the same parameter names, dtypes, devices, `requires_grad` flags and
    train/eval modes; shared parameters stay shared. There are four paths, tried in this order:

    - "fx": the result is a `torch.fx.GraphModule`, made by symbolic tracing;
    - "eager": the result has the model's own class, with smaller parameters and recounted attributes;
    - "export": the result is a `GraphModule` of ATen operations, made by `torch.export`;
    - "hooks": the result has the model's own class. Forward hooks fill up the outputs of smaller layers with zeros.

    The first path counts that removes everything that was asked for and is proven right. `record(small).path` names it,
    and `record(small).why_not` says why the paths before it were not taken.

    Args:
        model: any module, or a traced `torch.fx.GraphModule`.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        plan: the channels to remove, made by `analysis.plan(...)` or loaded from a file. The path that it was made on
            is tried first. Without a plan, the next arguments say how to make one:
        ratio, masks, importance, ignore, round_to, exact, seed: see `fxprune.planning.choose.choose`.
        bias: "prune" removes everything that belongs to a channel. "fold" removes its weights only. What the channel
            computes without them is a constant (from its bias, the shift of a norm, an activation at zero), which is
            folded exactly into the layers that read it. If that is not possible, the channel stays. The default is
            "fold" for masks="zeros", else "prune". masks="zeros" with "fold" removes all channels that are constant for
            every input or have no influence, so that the result computes the same function as the original.
        border: how to fold a constant into a layer that pads with zeros, where its effect is different near the border.
            "carrier" keeps one of the constant channels, and folds the others into it. "map" adds a map of constants to
            the result of the layer. The map has out_channels x height x width numbers, works only for inputs of the
            example's height and width, and needs a graph.
        also: a list of further example inputs, for a forward that runs other code on them. Channels that are locked or
            tied on one of the inputs are so in the result.
        strict: raise `RuleError` at an operation without a rule, instead of keeping the channels that enter it.
        verify: compare the result with its reference in float64, if the weights have values (see `fxprune.proof`).
            Shapes are always proven. A forward that depends on the numbers in its tensors is always compared, because
            its shapes cannot be proven.
        path: the name of the only path to try.
        prefer: "class" tries the paths that keep the model's class first, "graph" those that make a graph.
        norms: "kept" takes statistics over the kept channels. "preserve" makes statistics count the original width
            wherever that is exactly possible: layer norms, RMS norms, and means over values that are zero at removed
            channels. The result then equals the masked original there, and such groups are exact.

    Raises a subclass of `FxpruneError`, which says what to do. Warns with `NothingRemovedWarning`, which says why, if
    nothing could be removed, and with `FixedSizesWarning` if the result is an exported graph that takes fewer sizes of
    inputs than the original.

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
    if result.analysis.captured.fixed:
        sizes = "; ".join(result.analysis.captured.fixed)
        text = f"the small model is an exported graph, which raises for sizes that the original takes: {sizes}"
        warnings.warn(text, FixedSizesWarning, stacklevel=3)
    attach(result.small, _recorded(result))
    if path is None and prefer is None:
        explain_missing_graph(result.small)
    return result.small


def _first_result(model: nn.Module, example_inputs: Any, request: Request, paths: Sequence[FrontEnd]) -> Result:
    """The result of the first path that gives one.

    First all paths without hooks are tried, each for the whole request. If none works, those that failed because a size
    could not be recounted are tried again, with the channels locked that cause the failure (not for a given plan, and
    not with `strict`). If none works, the path with hooks is tried.

    Raises the most useful of the errors if there is no result.
    """

    def attempted(path: FrontEnd, *, locking: bool = False) -> Result:
        options: dict[str, Any] = {"also": request.also, "strict": request.strict, "norms": request.norms}
        return attempt(analyze(model, example_inputs, path=path.name, **options), request, locking=locking)

    def goes_on(path: FrontEnd, error: FxpruneError) -> bool:
        if isinstance(error, PlanError):  # the plan may fit the path that it was made on and no other
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
    """The errors of paths that made a wrong model although its shapes were proven: fxprune has a mistake."""
    unproven = (error for error in found.errors.values() if isinstance(error, UnprovenError))
    return [error for error in unproven if not error.analysis.captured.real]


def _shown(found: Outcome[Result]) -> FxpruneError:
    """The error for the user if no path gave a result."""
    wrong = _wrong(found)
    if wrong:
        return wrong[0].diagnosed()
    error = most_useful_error(list(found.errors.values()))
    return error.shown() if isinstance(error, UnprovenError) else error


def _why_not(found: Outcome[Result], result: Result) -> dict[str, str]:
    """Name of a path that was tried and failed -> why, in one line."""
    return {
        path: "; ".join(part for part in (error.what, error.at, error.why) if part)
        for path, error in found.errors.items()
        if path != result.analysis.captured.path
    }


@public_call()
def verify(model: nn.Module, small: nn.Module, example_inputs: Any) -> float:
    """The relative error of a small model against its reference.

    The reference is `masked(model, record(small).zeroed)`. Where the removal changed a statistic (see `norms` of
    `transform`), the reference takes that statistic over the kept channels. Both run in float64 and evaluation mode.

    Args:
        model: the original.
        small: the model that `transform` made from it.
        example_inputs: as for `transform`. They may be different ones, also in their sizes.

    Returns the largest max |small - reference| / max |reference| of all outputs; inf if shapes differ or NaN appears.
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
    reasons += references_to_original(analysis.model, small) + left_out(analysis.tensors, analysis.model, small)
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
    """The plan with everything that is known after the rewrite: recounted sizes, structure and path."""
    analysis, small, plan = result.analysis, result.small, result.plan
    structure = plan.structure
    if structure is None or not structure.coupled:
        structure = structure_of(analysis, result.removal.removed, plan.removed)
    return replace(plan, sizes=derived(analysis, small), structure=structure, path=analysis.captured.path)
