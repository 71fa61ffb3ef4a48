"""Single elements of a parameter that an optimizer leaves as they are: masks, held by hooks around its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from fxprune.errors import PlanError
from fxprune.names import names_of
from fxprune.ops.layers import output_dim
from fxprune.pattern_values import Candidate, winners


@dataclass(frozen=True)
class Guard:
    """Elements that the steps of an optimizer leave alone, how many, and how to let them go."""

    count: int
    release: Callable[[], None]


_GUARDS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by parameter; dies with it, a deep copy has none


def guarded(parameter: nn.Parameter) -> Guard | None:
    """The guard of a parameter; None where it has none."""
    return cast(Guard, _GUARDS[parameter]) if parameter in _GUARDS else None


def let_go(parameter: nn.Parameter) -> Guard | None:
    """Take the guard of a parameter away, and return it."""
    found = guarded(parameter)
    if found is not None:
        found.release()
        del _GUARDS[parameter]
    return found


def guard(parameter: nn.Parameter, frozen: Tensor | None, optimizer: torch.optim.Optimizer) -> None:
    """Let every step of an optimizer leave `frozen` elements (all where None) bit for bit as it found them.

    The values are taken just before a step, so that weights that are loaded or set by hand in between stay. The
    gradient of the elements becomes zero: it counts in no norm that gradients are clipped by, and no momentum builds
    up that would push the elements once they are free.
    """
    before: list[Tensor] = []
    weak = TensorWeakRef(parameter)  # what lives in the hooks of an optimizer must not keep a parameter alive

    def take(*_: Any) -> None:
        held = weak()
        before[:] = [] if held is None else [held.detach().clone()]

    def put_back(*_: Any) -> None:
        held = weak()
        if held is not None and before:
            old = before[0]
            with torch.no_grad():
                held.copy_(old if frozen is None else torch.where(frozen.to(old.device), old, held))
        before.clear()

    def without(grad: Tensor) -> Tensor:
        if grad.is_sparse or frozen is None:  # what is put back is what counts
            return grad
        return grad.masked_fill(frozen.to(grad.device), 0.0)

    handles: list[Any] = [optimizer.register_step_pre_hook(take), optimizer.register_step_post_hook(put_back)]
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
    """Guard {pattern: bool mask, True = frozen}; how many elements are frozen of each parameter that is named.

    Raises `PlanError`, before anything is changed, for what does not fit.
    """
    if not masks:
        raise PlanError("freeze names nothing", why="the dict of masks is empty")
    if optimizer is None:
        raise PlanError(
            "masks need the optimizer",
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
        frozen = _in_shape(name, names.modules[name.rpartition(".")[0]], parameter, masks[pattern])
        if id(parameter) not in updated:
            raise PlanError(f'the optimizer does not update "{name}"', do="pass the one that does")
        if guarded(parameter) is not None or not parameter.requires_grad:
            raise PlanError(f'"{name}" cannot be frozen by this mask', why="all or some of it is frozen already")
        wanted[name] = (parameter, frozen)
    for parameter, frozen in wanted.values():
        guard(parameter, frozen, optimizer)
    return {name: int(frozen.sum()) for name, (_, frozen) in wanted.items()}


def _in_shape(name: str, module: nn.Module, parameter: nn.Parameter, mask: Any) -> Tensor:
    """The mask in the parameter's shape and on its device. Raises `PlanError` where it does not fit."""
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        kind = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        do = "pass a bool tensor, True = frozen"
        raise PlanError(f'the mask of "{name}" is not boolean', why=f"it is {kind}", do=do)
    dim = output_dim(module, parameter.ndim)
    if mask.shape != parameter.shape:
        if mask.ndim != 1 or parameter.ndim == 0 or len(mask) != parameter.shape[dim]:
            raise PlanError(
                f'the mask of "{name}" has the wrong shape',
                why=f"its shape is {tuple(mask.shape)}, that of the parameter {tuple(parameter.shape)}",
                do="pass one entry per element, or one per output channel",
            )
        mask = mask.view([-1 if d == dim else 1 for d in range(parameter.ndim)]).expand(parameter.shape)
    if not mask.any():
        raise PlanError(f'the mask of "{name}" freezes nothing', do="set to True what shall stay as it is")
    if mask.all():
        raise PlanError(f'the mask of "{name}" freezes everything', do=f'pass the name alone: freeze(model, "{name}")')
    frozen: Tensor = mask.detach().to(parameter.device).clone()
    return frozen
