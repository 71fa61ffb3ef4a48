"""Averaged models: a copy of the original becomes a copy of the small model, with the kept part of its weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fxprune._follow.parameters import Counterparts
from fxprune._follow.result import Followed, Prepared
from fxprune.errors import InputError
from fxprune.planning.combine import kept_flags
from fxprune.rewrite.tensors import cut


def average_follows(average: nn.Module, counterparts: Counterparts) -> Prepared:
    """The change of a wrapper whose `module` is a copy of the model, such as `AveragedModel`; prepared, not yet made.

    Raises `InputError` if it holds no such copy, or if the plan folds constants, which follow from the weights.
    """
    kind, copied = type(average).__name__, getattr(average, "module", None)
    if not isinstance(copied, nn.Module):
        raise InputError(
            f"{kind} cannot follow",
            why="it is no optimizer, and has no attribute `module` with a copy of the model",
            do="pass an optimizer, or a wrapper such as torch.optim.swa_utils.AveragedModel",
        )
    _check(kind, copied, counterparts)
    made = copy.deepcopy(counterparts.small)
    tensors = dict(copied.named_parameters(remove_duplicate=False))
    moved, dropped = [], []
    with torch.no_grad():
        for counterpart in counterparts.by_id.values():
            if counterpart.new is None:
                dropped.append(counterpart.name)
                continue
            made.get_parameter(counterpart.name).copy_(counterpart.part(tensors[counterpart.name], power=1.0))
            moved.append(counterpart.name)
        _copy_buffers(copied, made, counterparts)
    modes = {name: module.training for name, module in copied.named_modules()}
    for name, module in made.named_modules():
        module.training = modes.get(name, module.training)
    repaired = ("its weights are those that it had, and not repaired",) if counterparts.repaired else ()
    result = Followed(kind, tuple(moved), tuple(dropped), notes=repaired)

    def change() -> None:
        average.module = made

    return Prepared(result, change)


def _check(kind: str, copied: nn.Module, counterparts: Counterparts) -> None:
    shapes = {name: tuple(p.shape) for name, p in copied.named_parameters(remove_duplicate=False)}
    for counterpart in counterparts.by_id.values():
        if shapes.get(counterpart.name) != tuple(counterpart.old.shape):
            have = f"has shape {shapes[counterpart.name]}" if counterpart.name in shapes else "does not exist there"
            raise InputError(
                f"{kind} holds no copy of the model",
                at=f'"{counterpart.name}"',
                why=f"it {have}, and has shape {tuple(counterpart.old.shape)} in the model",
                do="pass the average of the model that was pruned",
            )
    plan = counterparts.plan
    if plan.biases or plan.maps or plan.zeroed is not None:
        raise InputError(
            f"{kind} cannot follow",
            why="the plan folds constants into biases, and these constants follow from the averaged weights",
            do="average.module = fxprune.transform(average.module, example_inputs, plan=fxprune.record(small).plan)",
        )


def _copy_buffers(copied: nn.Module, made: nn.Module, counterparts: Counterparts) -> None:
    """Copies the kept part of every buffer that differs from the model's; other buffers are as in the small model."""
    ours = dict(counterparts.model.named_buffers(remove_duplicate=False))
    theirs = dict(copied.named_buffers(remove_duplicate=False))
    for name, buffer in made.named_buffers(remove_duplicate=False):
        if name not in theirs or name not in ours or torch.equal(ours[name].to(theirs[name]), theirs[name]):
            continue
        part = cut(theirs[name], kept_flags(counterparts.plan, name, theirs[name].shape))
        if part.shape == buffer.shape:
            buffer.copy_(part)
