"""Optimizers that were not told that a model got smaller: a step that trains nothing is warned of."""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fxprune._follow.optimizers import parameters_of
from fxprune.errors import OptimizerLeftBehindWarning

_OWN_REFERENCES = 4
"""The references to a parameter that only its module holds, while `_is_shared` looks at it: the module's dict, the list
of parameters, the loop, and the call of `getrefcount`."""


def watch(optimizers: Sequence[Optimizer], small: nn.Module, *, told: Sequence[Any]) -> None:
    """Lets optimizers of the original warn at a step at which only the small model has gradients.

    Nothing is said before: whoever makes a new optimizer, or trains the original further, is not concerned. told: what
    follows; its optimizers are left out.
    """
    for optimizer in optimizers:
        if any(optimizer is target for target in told) or not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            continue  # a wrapper of another library has no hooks of its own; the optimizer in it has
        if optimizer not in _WATCHES:
            _WATCHES[optimizer] = _Watch(optimizer)
        _WATCHES[optimizer].smaller.append(weakref.ref(small))


def optimizers_of(model: Any) -> list[Optimizer]:
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
    found = [each for each in gc.get_objects() if issubclass(type(each), Optimizer)]
    return [each for each in found if hasattr(each, "param_groups") and own & set(map(id, parameters_of(each)))]


def _is_shared(parameters: list[nn.Parameter]) -> bool:
    return any(sys.getrefcount(parameter) > _OWN_REFERENCES for parameter in parameters)


class _Watch:
    """A hook of an optimizer, which warns once for each small model."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.smaller: list[weakref.ref[nn.Module]] = []
        optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: Optimizer, *args: Any) -> None:
        alive = [(each, small) for each in self.smaller if (small := each()) is not None]
        self.smaller = [each for each, _ in alive]
        for each, small in alive:
            if _have_gradients(small.parameters()) and not _have_gradients(parameters_of(optimizer)):
                self.smaller.remove(each)
                kind = type(optimizer).__name__
                warnings.warn(
                    f"{kind} trains nothing: it holds the parameters of the model that was pruned, which have no "
                    "gradients, and the small model has other ones. Call fxprune.follow(optimizer, model, small) after "
                    "transform, or make a new optimizer",
                    OptimizerLeftBehindWarning,
                    stacklevel=3,
                )


_WATCHES: weakref.WeakKeyDictionary[Optimizer, _Watch] = weakref.WeakKeyDictionary()


def _have_gradients(parameters: Iterable[torch.Tensor]) -> bool:
    """True if a parameter has a gradient that is not zero."""
    return any(p.grad is not None and bool(p.grad.detach().any()) for p in parameters)
