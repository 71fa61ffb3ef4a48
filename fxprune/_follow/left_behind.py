"""Optimizers that were not told that a model got smaller: a step that trains nothing is warned of."""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fxprune._follow.optimizers import parameters_of
from fxprune.errors import OptimizerLeftBehindWarning

_OWN_REFERENCES = 4
"""The references to a parameter that only its module holds, while `_is_shared` looks at it: the module's dict, the list
of parameters, the loop, and the call of `getrefcount`."""


@dataclass(frozen=True, eq=False)
class Holder:
    """An optimizer, and the parameters of a model that it holds."""

    optimizer: Optimizer
    parameters: Sequence[nn.Parameter]


def watch(holders: Sequence[Holder], small: nn.Module, *, in_place: bool = False) -> None:
    """Lets optimizers that still hold parameters of the original warn at a step that trains nothing.

    After `transform` the original may be trained further. So this is a step without new gradients of what the optimizer
    holds, while the small model has new ones. Gradients that were there at the transform may belong to a step that was
    still to be made: only the second step with them is warned of.

    in_place: the model itself has become the small one, and nothing else has the old parameters. The first step is
    warned of, unless they get gradients in another model.
    """
    for holder in holders:
        optimizer = holder.optimizer
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            continue  # a wrapper of another library has no hooks of its own; the optimizer in it has
        left = _Left(small, holder, in_place)
        if not left.is_held_by(optimizer):
            continue
        if optimizer not in _WATCHES:
            _WATCHES[optimizer] = _Watch(optimizer)
        _WATCHES[optimizer].left.append(left)


def holders_of(model: Any) -> list[Holder]:
    """The optimizers that hold a parameter of a model; none for anything but a module.

    The collector is asked only if anything else than the model holds a parameter.

    Call it before an analysis, which holds parameters too.
    """
    if not isinstance(model, nn.Module):
        return []
    parameters = [p for module in model.modules() for p in module._parameters.values() if p is not None]
    if not _is_shared(parameters):
        return []
    own = set(map(id, parameters))
    found = [each for each in gc.get_objects() if issubclass(type(each), Optimizer) and hasattr(each, "param_groups")]
    held = [Holder(each, [p for p in parameters_of(each) if id(p) in own]) for each in found]
    return [holder for holder in held if holder.parameters]


def _is_shared(parameters: list[nn.Parameter]) -> bool:
    return any(sys.getrefcount(parameter) > _OWN_REFERENCES for parameter in parameters)


class _Gradients:
    """The gradients that parameters have now, to be compared with later ones. The tensors are not kept alive."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        grads = [(id(p), p.grad) for p in parameters if p.grad is not None]
        self._seen = {of: (weakref.ref(grad), grad._version) for of, grad in grads}

    def any_new(self, parameters: Iterable[torch.Tensor], *, same_tensor_is_old: bool = False) -> bool:
        """True if a parameter has a gradient that is not zero, and is not the one it had.

        same_tensor_is_old: even if its numbers were changed, as a `GradScaler` does at a step.
        """
        for p in parameters:
            was, version = self._seen.get(id(p), (None, 0))
            same = was is not None and was() is p.grad
            if p.grad is None or (same and (same_tensor_is_old or version == p.grad._version)):
                continue
            if bool(p.grad.detach().any()):
                return True
        return False


class _Left:
    """A small model, and what an optimizer of its original holds that is not in it."""

    def __init__(self, small: nn.Module, holder: Holder, in_place: bool) -> None:
        own = set(map(id, small.parameters()))
        self.small, self.in_place = weakref.ref(small), in_place
        self._old = [weakref.ref(p) for p in holder.parameters if id(p) not in own]
        self._held_then = _Gradients(parameters_of(holder.optimizer))
        self._small_then = _Gradients(small.parameters())
        self._stepped = False

    def is_held_by(self, optimizer: Optimizer) -> bool:
        """True if an optimizer holds parameters of the original, and none of the small model."""
        small, held = self.small(), set(map(id, parameters_of(optimizer)))
        if small is None or any(id(p) in held for p in small.parameters()):
            return False
        return any(id(old) in held for old in self._alive())

    def trains_nothing(self, optimizer: Optimizer) -> bool:
        """True if a step is made that changes nothing that a model still has."""
        small, held = self.small(), parameters_of(optimizer)
        if small is None:
            return False
        if self.in_place:
            return not self._held_then.any_new(self._alive(), same_tensor_is_old=True)
        if self._held_then.any_new(held) or not self._small_then.any_new(small.parameters()):
            return False
        again, self._stepped = self._stepped, True
        return again or not _have_gradients(held)

    def _alive(self) -> list[nn.Parameter]:
        return [old for each in self._old if (old := each()) is not None]


class _Watch:
    """The hooks of an optimizer, which warn once for each small model.

    A step with a closure makes its gradients itself, so it is looked at when it is done.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.left: list[_Left] = []
        optimizer.register_step_pre_hook(self.before)
        optimizer.register_step_post_hook(self.after)

    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Called before a step."""
        if not _has_closure(args, kwargs):
            self._look(optimizer)

    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Called after a step."""
        if _has_closure(args, kwargs):
            self._look(optimizer)

    def _look(self, optimizer: Optimizer) -> None:
        self.left = [left for left in self.left if left.is_held_by(optimizer)]
        found = [left for left in self.left if left.trains_nothing(optimizer)]
        if not found:
            return
        self.left = [left for left in self.left if left not in found]
        kind = type(optimizer).__name__
        if any(left.in_place for left in found):
            why = "it holds the parameters that the model had before it was pruned in place"
            do = "Pass optimizer= to what prunes the model, or make a new optimizer"
        else:
            why = "it holds the parameters of the model that was pruned, which have no new gradients, and the small "
            why += "model has other ones"
            do = "Call fxprune.follow(optimizer, model, small) after transform, or make a new optimizer"
        warnings.warn(f"{kind} trains nothing: {why}. {do}", OptimizerLeftBehindWarning, stacklevel=4)


def _has_closure(args: Any, kwargs: Any) -> bool:
    """True if a step was called with a closure; args begins with the optimizer."""
    return any(callable(each) for each in (*args[1:], kwargs.get("closure")))


_WATCHES: weakref.WeakKeyDictionary[Optimizer, _Watch] = weakref.WeakKeyDictionary()


def _have_gradients(parameters: Iterable[torch.Tensor]) -> bool:
    """True if a parameter has a gradient that is not zero."""
    return any(p.grad is not None and bool(p.grad.detach().any()) for p in parameters)
