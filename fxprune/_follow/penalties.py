"""Penalties of sparse training: what reads the parameters of a model reads those of the small model from then on."""

from __future__ import annotations

import abc
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxprune._follow.parameters import Counterparts
from fxprune._follow.result import Followed, Prepared
from fxprune.channels.groups import Bools
from fxprune.errors import FxpruneError, InputError, level_of_user

SlotsThatStay = Mapping[str, Mapping[int, Bools]]
"""Name of a parameter -> dimension -> flags of the slots that stay, for the dimensions that lose some."""


class TrainingPenalty(abc.ABC):
    """The base class of penalties, which knows those that are in use.

    model: the model whose parameters it reads. attached: the optimizers to which it adds gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.attached: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.left: list[_Left] = []
        _IN_USE.add(self)

    def warn_if_left(self) -> None:
        """Warns if a small model that was made of its own is trained, and its own is not: then it is without effect."""
        for left in list(self.left):
            small = left.small()
            if small is None or _numbers(self.model) != left.own:
                self.left.remove(left)
            elif _numbers(small) != left.theirs:
                self.left.remove(left)
                kind = type(self).__name__
                text = f"{kind} is without effect: it is on the model that was pruned, and the small model is trained"
                do = f"Call fxprune.follow(penalty, model, small) after transform, or make a {kind} for the small model"
                warnings.warn(f"{text}. {do}", UserWarning, level_of_user())

    @abc.abstractmethod
    def moved_to(self, model: nn.Module, kept: SlotsThatStay) -> tuple[tuple[str, ...], Callable[[], None]]:
        """Returns the parameters that it will read of a small model, and a function that makes it do so.

        kept: the slots of its own model that the small one has. Raises `InputError` if it can read nothing there.
        """


@dataclass(frozen=True, eq=False)
class _Left:
    """A small model that a penalty was not moved to, with some numbers of it, and of the model of the penalty."""

    small: weakref.ref[nn.Module]
    theirs: list[float]
    own: list[float]


def _numbers(model: nn.Module) -> list[float]:
    """The first number of each parameter: training changes some of them. Of other kinds of tensors there are none."""
    plain = [p.detach() for p in model.parameters() if type(p) is nn.Parameter and p.numel() and not p.is_meta]
    return [float(values[(0,) * values.ndim]) for values in plain if values.is_floating_point()]


_IN_USE: weakref.WeakSet[TrainingPenalty] = weakref.WeakSet()


def penalty_follows(penalty: TrainingPenalty, counterparts: Counterparts) -> Prepared:
    """The change of a penalty on a model or on a module of it, prepared and not yet made.

    Raises `InputError` if it is on another model, or if the small model has no such module.
    """
    path = check_penalty(penalty, counterparts.model)
    try:
        own = counterparts.small.get_submodule(path)
    except AttributeError:
        why = f'the small model, a {type(counterparts.small).__name__}, has no module "{path}"'
        raise _cannot(penalty, why, "make a penalty for the small model") from None
    named = penalty.model.named_parameters(remove_duplicate=False)
    pairs = {name: counterparts.by_id.get(id(parameter)) for name, parameter in named}
    moved, make = penalty.moved_to(own, {name: pair.kept for name, pair in pairs.items() if pair is not None})
    return Prepared(Followed(type(penalty).__name__, moved, notes=("it is on the small model",)), make)


def check_penalty(penalty: TrainingPenalty, model: nn.Module) -> str:
    """The path in a model of the module that a penalty is on. Raises `InputError` if it is on another model."""
    for path, module in model.named_modules():
        if module is penalty.model:
            return str(path)
    why = f"it is on a {type(penalty.model).__name__}, which is neither the model nor a module in it"
    raise _cannot(penalty, why, "pass the penalty of the model that gets smaller")


def found_penalties(targets: Sequence[Any], counterparts: Counterparts) -> list[Prepared]:
    """The changes of penalties that were not named, and that some optimizers among the targets train with.

    These are the penalties on the model that are attached to one of them, and those that are attached to none, which
    are terms of the loss. Warns of those that cannot follow.
    """
    optimizers = [target for target in targets if isinstance(target, Optimizer)]
    modules = set(map(id, counterparts.model.modules())) if optimizers else set()
    changes = []
    for penalty in list(_IN_USE):
        named = any(penalty is target for target in targets)
        ours = not penalty.attached or any(optimizer in penalty.attached for optimizer in optimizers)
        if id(penalty.model) in modules and ours and not named:
            try:
                changes.append(penalty_follows(penalty, counterparts))
            except FxpruneError as error:
                text = f"{error.what}, and is without effect on the small model, because {error.first_why}"
                text += ". Make one for the small model"
                warnings.warn(text, UserWarning, level_of_user())
    return changes


def watch_penalties(model: nn.Module, small: nn.Module) -> None:
    """Lets penalties on a model or on modules in it warn when the small model is trained with them, and it is not."""
    modules = set(map(id, model.modules())) if _IN_USE else set()
    for penalty in list(_IN_USE):
        if id(penalty.model) in modules:
            penalty.left.append(_Left(weakref.ref(small), _numbers(small), _numbers(penalty.model)))


def stay_on(model: nn.Module, small: nn.Module) -> None:
    """Give penalties on a small model back to the model that becomes it in place, module by module."""
    places = {id(module): path for path, module in small.named_modules()}
    for penalty in list(_IN_USE):
        if id(penalty.model) in places:
            penalty.model = model.get_submodule(places[id(penalty.model)])


def _cannot(penalty: TrainingPenalty, why: str, do: str) -> InputError:
    kind = type(penalty).__name__
    return InputError(f"{kind} cannot follow", at=f"{kind}()", why=why, do=do)
