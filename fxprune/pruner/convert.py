"""From a model that carries masks and hooks to the smaller one, through the pass."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.analysis import Analysis, analyze
from fxprune.capture.inputs import normalize
from fxprune.capture.sober import Sober
from fxprune.capture.twin import twin
from fxprune.check import TOLERANCE, masked, relative_error
from fxprune.errors import ChannelsStayWarning, NothingRemovedWarning, PlanError, VerificationError
from fxprune.pruner.feeds import removable
from fxprune.pruner.migrate import plain
from fxprune.record import Record, attach, record
from fxprune.transform import transform

FOLD: dict[str, Any] = {"bias": "fold"} if "bias" in inspect.signature(transform).parameters else {}
"""What is left of a pruned channel, a constant, goes into what reads it."""


def converted(
    model: nn.Module, masks: Mapping[str, Tensor], example_inputs: Any, options: Mapping[str, Any]
) -> nn.Module:
    """See `BasePruner.convert`."""
    for taken in ("masks", "plan", "ratio", "bias", "exact"):
        if taken in options:
            raise PlanError(f"convert takes no {taken}", why="the masks of the pruner say what goes, exactly")
    # A norm of the hooked model counts the zeros too: it goes on counting them, or the channels stay.
    options = {"norms": "preserve", "exact": True, **options}
    zeros = plain(model)
    choices = {k: v for k, v in options.items() if k in ("also", "strict", "path", "norms")}
    analysis = analyze(zeros, example_inputs, **choices)
    asked, stay = removable(analysis, masks)
    inputs = [example_inputs, *options.get("also", ())] if options.get("verify", True) else []

    def attempt() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingRemovedWarning)  # said below, with more reasons
            small = transform(zeros, example_inputs, masks=asked, **FOLD, **options)
        _prove(model, small, inputs)
        return small

    try:
        small = attempt()
    except VerificationError:
        asked, more = _unread(analysis, zeros, asked, inputs)
        stay += more
        small = attempt()
    made = record(small)
    _tell(made, stay + [r for r in made.reasons if r.startswith(tuple(f'"{name}": ' for name in masks))])
    attach(small, replace(made, reasons=(*stay, *made.reasons)))
    return small


def _unread(
    analysis: Analysis, zeros: nn.Module, masks: Mapping[str, Tensor], inputs: list[Any]
) -> tuple[dict[str, Tensor], list[str]]:
    """The masks of those layers whose pruned channels alone can be set to zero everywhere, and why others stay."""
    found, reasons = {}, []
    for name, mask in masks.items():
        removed = analysis.plan(masks={name: mask}).removed
        if _error(masked(zeros, removed), zeros, inputs) <= TOLERANCE:
            found[name] = mask
        else:
            why = "what follows reads numbers other than 0 from them"
            reasons.append(f'"{name}": {int((~mask).sum())} masked channels stay: {why}')
    return found, reasons


def _tell(made: Record, reasons: list[str]) -> None:
    if not made.removed:
        why = "; ".join(reasons) or "no output is pruned"
        warnings.warn(f"nothing was removed: {why}", NothingRemovedWarning, stacklevel=4)
    elif reasons:
        more = f"; and of {len(reasons) - 4} more layers, see record(small).reasons" if len(reasons) > 4 else ""
        warnings.warn(
            f"pruned outputs stay as zeros: {'; '.join(reasons[:4])}{more}", ChannelsStayWarning, stacklevel=4
        )


def _prove(model: nn.Module, small: nn.Module, inputs: list[Any]) -> None:
    """Compare the smaller model with the one that carries hooks. Raises `VerificationError`."""
    error = _error(small, model, inputs, fixed=record(small).path == "export")
    if not error <= TOLERANCE:
        raise VerificationError(
            "the smaller model is another function than the pruned one",
            why=f"the relative error is {error:.2e}, at most {TOLERANCE:.0e} is rounding",
            do="report this; until then squash_mask() leaves the same function in the model's original shape",
        )


def _error(ours: nn.Module, theirs: nn.Module, inputs: list[Any], *, fixed: bool = False) -> float:
    """The largest relative error between two models, in float64.

    In evaluation mode, or `fixed` in the mode that they are in: that of an exported graph cannot be changed.
    """
    ours, theirs, worst = _precise(ours, fixed=fixed), _precise(theirs, fixed=fixed), 0.0
    for example_inputs in inputs:
        args, kwargs = pytree.tree_map_only(torch.Tensor, _double, normalize(example_inputs))
        with torch.no_grad(), torch.random.fork_rng(devices=[]), Sober():  # type: ignore[no-untyped-call]
            worst = max(worst, relative_error(ours(*args, **kwargs), theirs(*args, **kwargs)))
    return worst


def _precise(model: nn.Module, *, fixed: bool) -> nn.Module:
    made = twin(model, lambda tensor: _double(tensor).clone())
    for module in made.modules():
        module.training = module.training and fixed
    return made


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float64) if tensor.is_floating_point() else tensor.detach()
