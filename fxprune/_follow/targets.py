"""The targets that can follow: one change for each, all prepared before the first is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fxprune._follow.averages import average_follows, check_average
from fxprune._follow.nested import held_optimizers
from fxprune._follow.optimizers import check_optimizer, gradients_follow, optimizer_follows
from fxprune._follow.parameters import Counterparts, counterparts_of
from fxprune._follow.penalties import TrainingPenalty, check_penalty, found_penalties, penalty_follows
from fxprune._follow.result import Followed, Prepared
from fxprune.arguments import shown
from fxprune.errors import InputError, PlanError


def listed(given: Any) -> list[Any]:
    """The arguments as a list: nothing, one thing, or several."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


def check_targets(targets: Sequence[Any], model: Any) -> None:
    """Raises `InputError` for a target that cannot follow a model, whatever the small model will be."""
    if not isinstance(model, nn.Module):
        return  # the error for this comes with the analysis
    for target in (*targets, *held_optimizers(targets, model)):
        if isinstance(target, Optimizer):
            check_optimizer(target, model)
        elif isinstance(target, TrainingPenalty):
            check_penalty(target, model)
        elif isinstance(target, nn.Module):
            check_average(target, dict(model.named_parameters(remove_duplicate=False)))
        elif not isinstance(target, torch.amp.GradScaler):
            raise _no_target(target)


def let_follow(targets: Sequence[Any], model: nn.Module, small: Any) -> tuple[str, ...]:
    """Let targets follow the result of a transform. Returns the notes about them, each with the name of its class."""
    return made(prepared_for(targets, model, small))


def prepared_for(targets: Sequence[Any], model: nn.Module, small: Any) -> tuple[Prepared, ...]:
    """The changes of all targets and of the gradients; none without a target."""
    if targets and isinstance(small, ExportedProgram):
        why = "its parameters are none of those that an optimizer holds"
        at, do = ", ".join(f"{type(target).__name__}()" for target in targets), "leave optimizer and ema out"
        raise PlanError("nothing can follow a program", at=at, why=why, do=do)
    return prepared(targets, model, small) if targets else ()


def made(changes: Sequence[Prepared]) -> tuple[str, ...]:
    """Makes the changes. Returns the notes about them, each with the name of its class."""
    for change in changes:
        change.make()
    return tuple(f"{change.result.kind}: {note}" for change in changes for note in change.result.notes)


def prepared(targets: Sequence[Any], model: nn.Module, small: nn.Module) -> tuple[Prepared, ...]:
    """The changes of all targets; then those of the optimizers in them, of other penalties, and of the gradients.

    Raises `InputError` for a target that cannot follow, `PlanError` for a small model of another original.
    """
    counterparts = counterparts_of(model, small)
    targets = [*targets, *held_optimizers(targets, model)]
    changes = [_prepared(target, counterparts) for target in targets]
    return (*changes, *found_penalties(targets, counterparts), gradients_follow(counterparts))


def _prepared(target: Any, counterparts: Counterparts) -> Prepared:
    if isinstance(target, Optimizer):
        return optimizer_follows(target, counterparts)
    if isinstance(target, TrainingPenalty):
        return penalty_follows(target, counterparts)
    if isinstance(target, nn.Module):
        return average_follows(target, counterparts)
    if isinstance(target, torch.amp.GradScaler):
        notes = ("it holds no parameters, and stays as it is",)
        return Prepared(Followed(type(target).__name__, (), notes=notes), lambda: None)
    raise _no_target(target)


def _no_target(target: Any) -> InputError:
    """The error for anything but an optimizer, an average, a penalty, a scaler, or a list of these."""
    kind = type(target).__name__
    why, do = (
        "it is no optimizer and no averaged model",
        "pass the optimizer that trains the model, or an average of it",
    )
    if isinstance(target, LRScheduler):
        why, do = "it holds no parameters itself, and goes on with its optimizer", "pass its optimizer"
    elif isinstance(target, type):
        why, do = f"{target.__name__} is a class", "pass the object that trains the model"
    elif isinstance(target, Iterable) and not isinstance(target, str):
        why, do = "several targets are given as a list", "pass [first, second]"
    return InputError(f"{kind} cannot follow", at=shown(target), why=why, do=do)
