"""The form of a penalty: a term of the loss, or gradients that are added before a step of the optimizer."""

from __future__ import annotations

import abc
import copy
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from fxprune._follow import SlotsThatStay, TrainingPenalty
from fxprune._follow.optimizers import parameters_of
from fxprune.arguments import checks_arguments, checks_names, fits, shown
from fxprune.errors import InputError, PlanError
from fxprune.files import Field
from fxprune.schedules import Schedule, as_schedule


def squared(tensor: torch.Tensor) -> torch.Tensor:
    """|w|^2 of every element, with gradients."""
    return (tensor * tensor.conj()).real if tensor.is_complex() else tensor.square()


class Regularizer(TrainingPenalty):
    """A penalty on the parameters of a model, times a strength that may change from step to step.

    There are two ways to use one. As a term of the loss:

        loss = criterion(model(x), y) + penalty()
        ...
        penalty.step()

    Or as a hook of the optimizer, which adds the gradients before each step, and counts the step:

        handle = penalty.attach(optimizer)

    Both give the same gradients. The second one works with gradient scaling and accumulation too.

    Args:
        model: the model; its parameters are read at each call, so it may get smaller in between. With the model that
            `transform` returns it goes on where the optimizer follows, or by `fxprune.follow(penalty, model, small)`.
        strength: a factor, or a function from the number of a step, from 0, to the factor (see `fxprune.schedules`).
    """

    @checks_names
    def __init__(self, model: nn.Module, strength: float | Schedule) -> None:
        if not isinstance(model, nn.Module):
            at, why = f"{type(self).__name__}({shown(model)})", f"{type(model).__name__} is no torch.nn.Module"
            raise PlanError("a penalty needs a model", at=at, why=why, do="pass the model that is trained")
        super().__init__(model)
        self.strength = as_schedule(strength, what="strength")
        self.number = 0
        self._strength()
        self._after = False
        self._counting: weakref.ref[Optimizer] | None = None

    @abc.abstractmethod
    def penalty(self) -> torch.Tensor:
        """Returns the penalty without the strength, a scalar with gradients."""

    @abc.abstractmethod
    def parameters(self) -> Iterable[nn.Parameter]:
        """Returns the parameters that the penalty reads."""

    def __call__(self) -> torch.Tensor:
        """Returns the strength at this step times the penalty."""
        self.warn_if_left()
        return self._strength() * self.penalty()

    def __repr__(self) -> str:
        kinds = type(self).__name__, type(self.model).__name__
        return f"{kinds[0]} of {kinds[1]}: strength {self._strength():.6g} at step {self.number}"

    def moved_to(self, model: nn.Module, kept: SlotsThatStay) -> tuple[tuple[str, ...], Callable[[], None]]:
        """Returns the parameters that it will read of a small model, and a function that makes it do so.

        Raises `InputError` if it can read nothing there; nothing is changed before the function is called.
        """
        made = self.on(model, kept)
        read = set(map(id, made.parameters()))
        if not read and list(self.parameters()) and not made.is_done:
            raise InputError(
                f"{type(self).__name__} cannot follow",
                at=f"{type(self).__name__}()",
                why=f"the small model, a {type(model).__name__}, has none of the parameters that it is about",
                do="remove its handle, or make a penalty for the small model",
            )
        names = tuple(name for name, parameter in model.named_parameters() if id(parameter) in read)
        return names, lambda: vars(self).update(vars(made))

    def on(self, model: nn.Module, kept: SlotsThatStay) -> Regularizer:
        """Returns the same penalty, at the same step, on a small model. kept: the slots that this one has."""
        made = copy.copy(self)
        made.model = model
        return made

    @property
    def is_done(self) -> bool:
        """True if what it makes small is gone."""
        return False

    def step(self) -> None:
        """Counts a step, after which the strength may be another."""
        self.number += 1

    def state_dict(self) -> dict[str, int]:
        """The state for a checkpoint: the number of steps, from which the strength follows."""
        return {"number": self.number}

    @checks_names
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state. Raises `FileError` if it is none."""
        source = f"the state of {type(self).__name__}"
        given = dict(state) if isinstance(state, Mapping) else state
        number = Field(given, source, do="pass what state_dict gave").object(("number",))["number"]
        if not fits(number.value, int) or number.value < 0:
            raise number.wrong("it must be an integer of at least 0")
        self.number = number.value

    @checks_arguments("parameters")
    def add_gradients(
        self, scale: float | torch.Tensor = 1.0, *, parameters: Iterable[torch.Tensor] | None = None
    ) -> None:
        """Adds the gradients of the penalty, times the strength, to those of the parameters.

        scale: what the gradients of the loss are multiplied by, if a gradient scaler has not taken it out yet.
        parameters: only these get gradients; None for all.
        """
        if not isinstance(scale, torch.Tensor) and not (fits(scale, float) and math.isfinite(scale)):
            raise PlanError(
                "scale must be a finite number or a tensor",
                at=f"{type(self).__name__}.add_gradients(scale={shown(scale)})",
                why="the gradients are multiplied by it",
                do="pass what the gradient scaler multiplies by, or leave it out",
            )
        self.warn_if_left()
        strength = self._strength()
        if not strength:
            return
        only = None if parameters is None else set(map(id, parameters))
        chosen = [p for p in dict.fromkeys(self.parameters()) if p.requires_grad and (only is None or id(p) in only)]
        if not chosen:
            return
        with torch.enable_grad():
            found = torch.autograd.grad(strength * self.penalty(), chosen, allow_unused=True)
        for parameter, gradient in zip(chosen, found, strict=True):
            if gradient is not None:
                gradient = gradient * scale
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    @checks_names
    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Lets an optimizer add the gradients before each of its steps, and count it.

        Of a step with a closure they are added to what the closure computes. Of several optimizers each gets the
        gradients of its own parameters, and the last one counts. Returns a handle; `handle.remove()` ends it. Raises
        `PlanError` for anything but an optimizer, and for one that holds no parameter of the penalty.
        """
        if not isinstance(optimizer, Optimizer):
            at, why = f"attach({type(optimizer).__name__}())", f"{type(optimizer).__name__} is none"
            do = "pass the optimizer of the training; of several, call attach for each"
            raise PlanError("a penalty is attached to an optimizer", at=at, why=why, do=do)
        own = set(map(id, self.parameters()))
        if own and not own & set(map(id, parameters_of(optimizer))):
            raise PlanError(
                f"{type(optimizer).__name__} trains nothing that {type(self).__name__} reads",
                at=f"attach({type(optimizer).__name__}())",
                why="it holds none of the parameters of the penalty",
                do="pass the optimizer that trains the model of the penalty",
            )
        self._counting = weakref.ref(optimizer)
        self.attached.add(optimizer)

        def count(optimizer: Optimizer) -> None:
            if self._counting is None or self._counting() in (None, optimizer):
                self._counting = weakref.ref(optimizer)
                self.step()

        def before(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if closure is None:
                scale = getattr(optimizer, "grad_scale", None) or 1.0
                self.add_gradients(scale, parameters=parameters_of(optimizer))
                count(optimizer)
                return None

            def computed() -> Any:
                loss = closure()
                self.add_gradients(parameters=parameters_of(optimizer))
                return loss

            self._after = True
            changed = (args[0], computed, *args[2:]) if len(args) > 1 else args
            return changed, kwargs if len(args) > 1 else {**kwargs, "closure": computed}

        def after(optimizer: Optimizer, *args: Any) -> None:
            if self._after:  # the strength is that of this step during the closure, however often it is called
                self._after = False
                count(optimizer)

        def released() -> None:
            self.attached.discard(optimizer)
            if self._counting is not None and self._counting() is optimizer:
                self._counting = None

        return _Both(optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after), released)

    def _strength(self) -> float:
        value = self.strength(self.number)
        if not fits(value, float) or not math.isfinite(value) or value < 0:
            raise PlanError(
                "the strength of a penalty must be a finite number of at least 0",
                at=f"{type(self).__name__}, step {self.number}",
                why=f"it is {value!r}",
                do="pass a number, or one of fxprune.schedules",
            )
        return float(value)


class _Both(RemovableHandle):
    """The handle of two hooks."""

    def __init__(self, first: RemovableHandle, second: RemovableHandle, released: Callable[[], None]) -> None:
        self.first, self.second, self.released = first, second, released

    def remove(self) -> None:
        """Removes both."""
        self.first.remove()
        self.second.remove()
        self.released()
