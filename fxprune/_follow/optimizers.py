"""Optimizers: their groups hold the parameters of the small model, their state loses the same slots."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fxprune._follow.parameters import Counterpart, Counterparts
from fxprune._follow.result import Followed, Prepared
from fxprune.errors import InputError

POWERS = {
    **dict.fromkeys("exp_avg momentum_buffer grad_avg prev exp_inf m mu".split(), -1.0),
    **dict.fromkeys("exp_avg_sq max_exp_avg_sq square_avg sum variance row_var col_var".split(), -2.0),
    **dict.fromkeys("exp_avg_sq_row exp_avg_sq_col".split(), -2.0),
    "ax": 1.0,
    "acc_delta": 2.0,
}
"""Name of a state -> the power of a parameter's factor that it is multiplied by. A gradient has the inverse factor, a
mean of squared gradients its square, a mean of parameters the factor itself."""

MEANS = {"exp_avg_sq_row": -1, "exp_avg_sq_col": -2}
"""Name of a state of the Adafactor of transformers -> the dimension over which it is a mean, and which it lacks."""

NOT_BY_ELEMENT = {
    "Adafactor": "holds means over rows and columns, which still count what was removed",
    "Muon": "makes each update from the whole matrix, so the smaller matrix is updated otherwise",
}
"""Name of an optimizer whose updates are not made element by element -> what is other than in the masked original."""


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Raises `InputError` for an optimizer that holds no parameter of a model, and for L-BFGS."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError(
            f"{type(optimizer).__name__} cannot follow",
            at=f"{type(optimizer).__name__}()",
            why="its state is one vector for all parameters, and makes no sense for fewer of them",
            do="leave it out, and make a new optimizer for the small model",
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for parameter in parameters_of(optimizer)):
        raise _holds_none(optimizer)


def optimizer_follows(optimizer: Optimizer, counterparts: Counterparts) -> Prepared:
    """The change of an optimizer, prepared and not yet made.

    Raises `InputError` if it holds no parameter of the model, or a state that has no known form.
    """
    groups, moved, dropped = list[list[torch.Tensor]](), list[Counterpart](), list[str]()
    for group in optimizer.param_groups:
        kept: list[torch.Tensor] = []
        for parameter in group["params"]:
            counterpart = counterparts.by_id.get(id(parameter))
            if counterpart is None:
                kept.append(parameter)
            elif counterpart.new is None:
                dropped.append(counterpart.name)
            else:
                kept.append(counterpart.new)
                moved.append(counterpart)
        groups.append(kept)
    if not moved and not dropped:
        raise _holds_none(optimizer, counterparts.small)
    held = [
        (counterpart, counterpart.new)
        for counterpart in moved
        if counterpart.new is not None and counterpart.old in optimizer.state
    ]
    states: dict[torch.Tensor, Any] = {new: _state(optimizer, counterpart) for counterpart, new in held}
    added = _add_new(groups, moved, counterparts)
    result = Followed(
        type(optimizer).__name__, tuple(p.name for p in moved), tuple(dropped), added, tuple(_notes(optimizer, moved))
    )

    names = {id(new): name for name, new in counterparts.small.named_parameters()}

    def change() -> None:
        for group, parameters in zip(optimizer.param_groups, groups, strict=True):
            if "param_names" in group:
                known = {**names, **dict(zip(map(id, group["params"]), group["param_names"], strict=False))}
                known |= {id(pair.new): known[id(pair.old)] for pair in moved if id(pair.old) in known}
                group["param_names"] = [known[id(parameter)] for parameter in parameters]
            group["params"][:] = parameters
        for counterpart in counterparts.by_id.values():
            optimizer.state.pop(counterpart.old, None)
        optimizer.state.update(states)

    return Prepared(result, change)


def gradients_follow(counterparts: Counterparts) -> Prepared:
    """The change that gives the small model the kept part of the gradients that the original has."""
    grads = [
        (counterpart.name, counterpart.new, counterpart.part(counterpart.old.grad, power=-1.0))
        for counterpart in counterparts.by_id.values()
        if counterpart.new is not None
        and counterpart.new.grad is None
        and counterpart.old.grad is not None
        and counterpart.old.grad.layout is torch.strided
    ]

    def change() -> None:
        for _, parameter, grad in grads:
            parameter.grad = grad

    return Prepared(Followed("gradients", tuple(name for name, *_ in grads)), change)


def _holds_none(optimizer: Optimizer, small: nn.Module | None = None) -> InputError:
    new = set() if small is None else {id(parameter) for parameter in small.parameters()}
    held = parameters_of(optimizer)
    name = type(optimizer).__name__
    if any(id(parameter) in new for parameter in held):
        return InputError(
            f"{name} holds the parameters of the small model already",
            at=f"{name}()",
            why="it followed before, or was made for the small model",
            do="leave it out: nothing is left to follow",
        )
    return InputError(
        f"{name} holds no parameter of the model",
        at=f"{name}()",
        why=f"it has {len(held)} parameters, and none of them is one of the model's",
        do="pass the optimizer that trains the model, and the model itself",
    )


def _state(optimizer: Optimizer, counterpart: Counterpart) -> dict[str, Any]:
    """The state of a parameter, without the slots that are removed."""
    return {key: _part(optimizer, counterpart, key, value) for key, value in optimizer.state[counterpart.old].items()}


def _part(optimizer: Optimizer, counterpart: Counterpart, key: str, value: Any) -> Any:
    shape = tuple(counterpart.old.shape)
    if not isinstance(value, torch.Tensor):
        if isinstance(value, (list, tuple, dict)) and value:
            raise _unknown(optimizer, counterpart, key, f"it is a {type(value).__name__}")
        return value
    if value.shape == counterpart.old.shape:
        return counterpart.part(value, power=POWERS.get(key, -1.0))
    if value.numel() <= 1:
        return value
    if key in MEANS and value.ndim == len(shape) - 1:
        lacking = MEANS[key]
        return counterpart.part(value.unsqueeze(lacking), power=POWERS[key]).squeeze(lacking)
    if value.ndim == len(shape) and all(size in (1, full) for size, full in zip(value.shape, shape, strict=True)):
        return counterpart.part(value, power=POWERS.get(key, -1.0))
    raise _unknown(optimizer, counterpart, key, f"it has shape {tuple(value.shape)}, the parameter {shape}")


def _unknown(optimizer: Optimizer, counterpart: Counterpart, key: str, why: str) -> InputError:
    return InputError(
        f"the state of {type(optimizer).__name__} cannot follow",
        at=f'"{key}" of "{counterpart.name}"',
        why=f"{why}, so it is not known which of its numbers belong to a channel",
        do="make a new optimizer for the small model",
    )


def _add_new(groups: list[list[torch.Tensor]], moved: list[Counterpart], counterparts: Counterparts) -> tuple[str, ...]:
    """Puts parameters that only the small model has into the group of another parameter of their layer."""
    place: dict[str, list[torch.Tensor]] = defaultdict(list)
    by_parameter = {id(counterpart.new): counterpart.name.rpartition(".")[0] for counterpart in moved}
    for group in groups:
        for parameter in group:
            place.setdefault(by_parameter.get(id(parameter), "\n"), group)
    names = []
    for name, parameter in counterparts.added.items():
        layer = name.rpartition(".")[0]
        if layer in place and parameter.requires_grad:
            place[layer].append(parameter)
            names.append(name)
    return tuple(names)


def _notes(optimizer: Optimizer, moved: list[Counterpart]) -> list[str]:
    inner = getattr(optimizer, "optimizer", optimizer)  # that of accelerate wraps another one
    kind = next((c.__name__ for c in type(inner).__mro__ if c.__name__ in NOT_BY_ELEMENT), "")
    notes = [f"{kind} {NOT_BY_ELEMENT[kind]}"] if kind else []
    scaled = [counterpart.name for counterpart in moved if counterpart.factor is not None]
    if scaled:
        listed = ", ".join(scaled[:4]) + (", ..." if scaled[4:] else "")
        notes.append(
            f"{listed} carry a factor of the plan: their state has the inverse factor, as their gradients have, and "
            "their updates are not those of the masked original"
        )
    return notes


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All parameters that an optimizer holds."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
