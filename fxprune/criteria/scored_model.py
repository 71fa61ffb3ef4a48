"""The model that scores were measured on: whether another one has its parameters, and their numbers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxprune.errors import OtherWeightsWarning, PlanError, level_of_user, nearest

READ = 4096
"""The most numbers of a parameter that are read."""

SAME = 5e-3
"""The largest relative difference of two sums of one parameter, which its numbers in another precision may have."""


@dataclass(frozen=True)
class ScoredParameter:
    """A parameter of the model. sum: of some of its numbers, weighed by their places; None where it has no values."""

    shape: tuple[int, ...]
    sum: float | None


def parameters_of(model: nn.Module) -> dict[str, ScoredParameter]:
    """The parameters of a model by all their names."""
    return {
        name: ScoredParameter(tuple(parameter.shape), _sum(parameter.detach()))
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not isinstance(parameter, nn.parameter.UninitializedParameter)
    }


def _sum(values: Tensor) -> float | None:
    """The sum of |w[i]| (1 + i / count) over at most `READ` numbers w, evenly spread over the parameter."""
    if values.is_meta or not values.numel() or values.is_complex():
        return None
    flat = values.reshape(-1)
    some = flat[:: -(-len(flat) // READ)].double().abs()
    found = float((some * torch.linspace(1, 2, len(some), dtype=torch.float64, device=some.device)).sum())
    return found if found < float("inf") else None  # NaN too


def check_model(known: Mapping[str, ScoredParameter], model: nn.Module) -> None:
    """Warns with `OtherWeightsWarning` if a model has other numbers than the one that the scores were measured on.

    known: the parameters of that one, none for scores of an older version. The model may be without some of them, as
    where branches are dropped. Raises `PlanError` for other names or shapes.
    """
    if not known:
        return
    do = "measure the scores of this model"
    others = []
    for name, found in parameters_of(model).items():
        scored = known.get(name)
        if scored is None:
            why = f"that one has no such parameter: {nearest(name, known)}"
            raise PlanError("the scores were measured on another model", at=f'"{name}"', why=why, do=do)
        if scored.shape != found.shape:
            why = f"its shape was {list(scored.shape)} there, and is {list(found.shape)}"
            raise PlanError("the scores were measured on another model", at=f'"{name}"', why=why, do=do)
        if None not in (scored.sum, found.sum) and not _same(scored.sum, found.sum):
            others.append(name)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        text = f'the scores were measured with other weights than the model has now ("{others[0]}"{more})'
        warnings.warn(f"{text}: {do}, if it was trained since", OtherWeightsWarning, stacklevel=level_of_user())


def _same(first: float | None, second: float | None) -> bool:
    assert first is not None
    assert second is not None
    return abs(first - second) <= SAME * max(first, second)
