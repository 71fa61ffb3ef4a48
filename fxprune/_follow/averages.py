"""Averaged models: a copy of the original becomes a copy of the small model, with the kept part of its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fxprune._follow.parameters import Counterparts
from fxprune._follow.result import Followed, Prepared
from fxprune._follow.same_object import become
from fxprune.capture.module_copy import deep_copy
from fxprune.depth.numbering import count_from_zero
from fxprune.errors import InputError
from fxprune.planning.combine import kept_flags
from fxprune.rewrite.tensors import cut


def average_follows(average: nn.Module, counterparts: Counterparts) -> Prepared:
    """The change of a wrapper whose `module` is a copy of the model, such as `AveragedModel`; prepared, not yet made.

    The copy may be a part of a copied larger model. Its weights keep their type, their device and `requires_grad`; its
    modules stay the same objects where the small model keeps their class.

    Raises `InputError` if it holds no such copy, or if the plan folds constants, which follow from the weights.
    """
    kind = type(average).__name__
    named = {name: counterpart.old for counterpart in counterparts.by_id.values() for name in (counterpart.name,)}
    path = check_average(average, named)
    _refuse_folding(kind, counterparts)
    copied = average.get_submodule(path)
    made = deep_copy(counterparts.small)
    tensors = dict(copied.named_parameters(remove_duplicate=False))
    moved, dropped = [], []
    for counterpart in counterparts.by_id.values():
        if counterpart.new is None:
            dropped.append(counterpart.name)
            continue
        own = tensors[counterpart.name]
        parameter = made.get_parameter(counterpart.name)
        parameter.data = counterpart.part(own, power=1.0)
        parameter.requires_grad_(own.requires_grad)
        moved.append(counterpart.name)
    _copy_buffers(copied, made, counterparts)
    modes = {name: module.training for name, module in copied.named_modules()}
    for name, module in made.named_modules():
        module.training = modes.get(name, module.training)
    count_from_zero(made)
    repaired = ("its weights are those that it had, and not repaired",) if counterparts.repaired else ()
    result = Followed(kind, tuple(moved), tuple(dropped), notes=repaired)

    def change() -> None:
        if type(copied) is type(made):
            become(copied, made)
        else:
            parent, _, last = path.rpartition(".")
            average.get_submodule(parent)._modules[last] = made

    return Prepared(result, change)


def check_average(average: nn.Module, parameters: Mapping[str, torch.Tensor]) -> str:
    """The path of the copy of a model in an average. parameters: those of the model, by name.

    Raises `InputError` if there is no such copy, or more than one.
    """
    kind, copied = type(average).__name__, getattr(average, "module", None)
    if not isinstance(copied, nn.Module):
        raise InputError(
            f"{kind} cannot follow",
            at=f"{kind}()",
            why="it is no optimizer, and has no attribute `module` with a copy of the model",
            do="pass an optimizer, or a wrapper such as torch.optim.swa_utils.AveragedModel",
        )
    shapes = {name: tuple(p.shape) for name, p in copied.named_parameters(remove_duplicate=False)}
    found = [path for path, _ in copied.named_modules() if _lacks(shapes, path, parameters) is None]
    if len(found) == 1 or "" in found:
        return f"module.{found[0]}".removesuffix(".") if "" not in found else "module"
    if found:
        raise InputError(
            f"{kind} holds several copies of the model",
            at=", ".join(f'"{path}"' for path in found[:4]),
            why="each has the names and shapes of its parameters",
            do="make an average of the model alone",
        )
    name = _lacks(shapes, "", parameters)
    assert name is not None
    have = f"has shape {shapes[name]}" if name in shapes else "does not exist there"
    raise InputError(
        f"{kind} holds no copy of the model",
        at=f'"{name}"',
        why=f"it {have}, and has shape {tuple(parameters[name].shape)} in the model",
        do="pass the average of the model that was pruned, or of one that holds it",
    )


def holds_copy(average: nn.Module, parameters: Mapping[str, torch.Tensor]) -> bool:
    """True if an average has a copy of a model. parameters: those of the model, by name."""
    copied = getattr(average, "module", None)
    if not isinstance(copied, nn.Module):
        return False
    shapes = {name: tuple(p.shape) for name, p in copied.named_parameters(remove_duplicate=False)}
    return any(_lacks(shapes, path, parameters) is None for path, _ in copied.named_modules())


def _lacks(shapes: Mapping[str, tuple[int, ...]], path: str, parameters: Mapping[str, torch.Tensor]) -> str | None:
    """The first parameter of a model that a part of the average does not have in its shape; None if it has all."""
    before = f"{path}." if path else ""
    return next((name for name, p in parameters.items() if shapes.get(before + name) != tuple(p.shape)), None)


def _refuse_folding(kind: str, counterparts: Counterparts) -> None:
    plan = counterparts.plan
    if plan.biases or plan.maps or plan.zeroed is not None:
        raise InputError(
            f"{kind} cannot follow",
            at="the plan of the small model",
            why="the plan folds constants into biases, and these constants follow from the averaged weights",
            do="average.module = fxprune.transform(average.module, example_inputs, plan=fxprune.record(small).plan)",
        )


def _copy_buffers(copied: nn.Module, made: nn.Module, counterparts: Counterparts) -> None:
    """Copies the kept part of every buffer that differs from the model's; other buffers are as in the small model."""
    ours = dict(counterparts.model.named_buffers(remove_duplicate=False))
    theirs = dict(copied.named_buffers(remove_duplicate=False))
    for name, buffer in made.named_buffers(remove_duplicate=False):
        if name not in theirs:
            continue
        own = theirs[name]
        buffer.data = buffer.data.to(own.device, own.dtype if own.is_floating_point() else buffer.dtype)
        if name not in ours or torch.equal(ours[name].to(own), own):
            continue
        part = cut(own, kept_flags(counterparts.plan, name, own.shape))
        if part.shape == buffer.shape:
            buffer.copy_(part)
