"""Optimizers in optimizers: one such as SAM steps with another one, which has state of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fxprune._follow.optimizers import parameters_of


def held_optimizers(targets: Sequence[Any], model: nn.Module) -> list[Optimizer]:
    """The optimizers that those among the targets hold in their attributes, at any depth, each once.

    Not those that are targets themselves, that hold no parameter of the model, or whose groups and state are those of
    the optimizer around them.
    """
    waiting = [target for target in targets if isinstance(target, Optimizer)]
    own = set(map(id, model.parameters())) if waiting else set[int]()
    seen = set(map(id, targets))
    found: list[Optimizer] = []
    while waiting:
        outer = waiting.pop()
        for inner in _optimizers_in(vars(outer).values()):
            if id(inner) in seen:
                continue
            seen.add(id(inner))
            waiting.append(inner)
            same = inner.param_groups is outer.param_groups and inner.state is outer.state
            if not same and any(id(parameter) in own for parameter in parameters_of(inner)):
                found.append(inner)
    return found


def _optimizers_in(values: Iterable[Any]) -> Iterator[Optimizer]:
    for value in values:
        if isinstance(value, Optimizer):
            yield value
        elif isinstance(value, list | tuple):
            yield from (part for part in value if isinstance(part, Optimizer))
        elif isinstance(value, Mapping):
            yield from (part for part in value.values() if isinstance(part, Optimizer))
