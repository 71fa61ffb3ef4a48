"""Frozen elements of parameters: hooks before and after each step of an optimizer give them their values back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from fxprune.errors import PlanError
from fxprune.given_masks import bool_mask
from fxprune.names import names_of
from fxprune.ops.layers import output_dim
from fxprune.pattern_values import Candidate, winners


@dataclass(frozen=True)
class Guard:
    """The frozen elements of one parameter: count, how many; release, a function that removes the hooks."""

    count: int
    release: Callable[[], None]


_GUARDS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter -> its guard; a deep copy has none


def guard_of(parameter: nn.Parameter) -> Guard | None:
    """Returns the guard of a parameter, or None."""
    return cast(Guard, _GUARDS[parameter]) if parameter in _GUARDS else None


def remove_guard(parameter: nn.Parameter) -> Guard | None:
    """Removes the guard of a parameter, and returns it."""
    found = guard_of(parameter)
    if found is not None:
        found.release()
        del _GUARDS[parameter]
    return found


def guard(parameter: nn.Parameter, frozen: Tensor | None, optimizer: torch.optim.Optimizer) -> None:
    """Freezes elements of a parameter: every step of an optimizer leaves them bit for bit as they were before it.

    frozen: bool, of the parameter's shape, True = frozen; None freezes all elements.

    The values are stored just before each step, so that weights which are loaded or set by hand between steps stay. The
    gradient of the elements becomes zero. So it does not count in the norm when gradients are clipped, and no momentum
    builds up that would move the elements after `unfreeze`.
    """
    before: list[Tensor] = []
    weak = TensorWeakRef(parameter)  # the hooks of an optimizer must not keep the parameter alive

    def store(*_: Any) -> None:
        held = weak()
        before[:] = [] if held is None else [held.detach().clone()]

    def restore(*_: Any) -> None:
        held = weak()
        if held is not None and before:
            old = before[0]
            with torch.no_grad():
                held.copy_(old if frozen is None else torch.where(frozen.to(old.device), old, held))
        before.clear()

    def without(grad: Tensor) -> Tensor:
        if grad.is_sparse or frozen is None:  # `restore` is enough
            return grad
        return grad.masked_fill(frozen.to(grad.device), 0.0)

    handles: list[Any] = [optimizer.register_step_pre_hook(store), optimizer.register_step_post_hook(restore)]
    if frozen is not None:
        handles.append(parameter.register_hook(without))  # type: ignore[no-untyped-call]
        if parameter.grad is not None:
            parameter.grad = without(parameter.grad)

    def release() -> None:
        for handle in handles:
            handle.remove()

    _GUARDS[parameter] = Guard(parameter.numel() if frozen is None else int(frozen.sum()), release)


def guard_elements(
    model: nn.Module, masks: Mapping[Any, Any], optimizer: torch.optim.Optimizer | None
) -> dict[str, int]:
    """Freezes elements by {pattern: bool mask, True = frozen}; returns {parameter: number of frozen elements}.

    Raises `PlanError`, before anything is changed, for masks or patterns that do not fit.
    """
    if not masks:
        raise PlanError(
            "freeze names nothing",
            at="freeze(model, {})",
            why="the dict of masks is empty",
            do="pass {name: mask}, True = frozen",
        )
    if optimizer is None:
        raise PlanError(
            "masks need the optimizer",
            at="freeze(optimizer=None)",
            why="momentum and weight decay move every element of a parameter that has a gradient",
            do="pass optimizer=, whose steps then leave the frozen elements as they are",
        )
    updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
    names = names_of(model)
    first = [(name, *names.spellings(name)) for name, _ in model.named_parameters()]
    candidates = [Candidate(f'parameter "{spelled[0]}"', spelled) for spelled in first]
    wanted: dict[str, tuple[nn.Parameter, Tensor]] = {}
    for position, pattern in winners(names, masks, candidates, what="freeze", kind="parameter").items():
        spelled = first[position]
        name = pattern if pattern in spelled else spelled[0]
        parameter = names.tensors[name]
        frozen = _fitted_mask(name, names.modules[name.rpartition(".")[0]], parameter, masks[pattern])
        if id(parameter) not in updated:
            raise PlanError(
                f'the optimizer does not update "{name}"',
                at=f'"{name}"',
                why="no group of the optimizer has this parameter",
                do="pass the one that does",
            )
        if guard_of(parameter) is not None or not parameter.requires_grad:
            raise PlanError(
                f'"{name}" cannot be frozen by this mask',
                at=f'"{name}"',
                why="all or some of it is frozen already",
                do="unfreeze it first, and freeze all of it at once",
            )
        wanted[name] = (parameter, frozen)
    for parameter, frozen in wanted.values():
        guard(parameter, frozen, optimizer)
    return {name: int(frozen.sum()) for name, (_, frozen) in wanted.items()}


def _fitted_mask(name: str, module: nn.Module, parameter: nn.Parameter, mask: Any) -> Tensor:
    """Returns the mask in the parameter's shape and on its device. Raises `PlanError` if it does not fit."""
    found = bool_mask(mask)
    if isinstance(found, str):
        do = "pass a bool tensor, True = frozen"
        raise PlanError(f'the mask of "{name}" is not boolean', at=f'"{name}"', why=found, do=do)
    mask = found
    dim = output_dim(module, parameter.ndim)
    if mask.shape != parameter.shape:
        if mask.ndim != 1 or parameter.ndim == 0 or len(mask) != parameter.shape[dim]:
            raise PlanError(
                f'the mask of "{name}" has the wrong shape',
                at=f'"{name}"',
                why=f"its shape is {tuple(mask.shape)}, that of the parameter {tuple(parameter.shape)}",
                do="pass one entry per element, or one per output channel",
            )
        mask = mask.view([-1 if d == dim else 1 for d in range(parameter.ndim)]).expand(parameter.shape)
    if not mask.any():
        raise PlanError(
            f'the mask of "{name}" freezes nothing',
            at=f'"{name}"',
            why="none of its entries is True",
            do="set to True what shall stay as it is",
        )
    if mask.all():
        raise PlanError(
            f'the mask of "{name}" freezes everything',
            at=f'"{name}"',
            why="all of its entries are True",
            do=f'pass the name alone: freeze(model, "{name}")',
        )
    frozen: Tensor = mask.detach().to(parameter.device).clone()
    return frozen
