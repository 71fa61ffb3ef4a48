"""Schedules: functions from a step to a value, such as the sparsity of a pruner or the threshold of an activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxprune.arguments import fits, shown
from fxprune.errors import PlanError

__all__ = ["AGP", "Constant", "Linear", "Schedule", "as_schedule"]

Schedule = Callable[[int], float]
"""A function from a step, counted from 0, to the value at that step."""


@dataclass(frozen=True)
class Constant:
    """The same value at every step.

    >>> Constant(0.5)(0), Constant(0.5)(1000)
    (0.5, 0.5)
    """

    value: float

    def __post_init__(self) -> None:
        _finite(self, value=self.value)

    def __call__(self, step: int) -> float:
        """The value, whatever the step."""
        return self.value


@dataclass(frozen=True)
class _Ramp:
    initial: float
    final: float
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        _finite(self, initial=self.initial, final=self.final)
        for name, value, least in (("steps", self.steps, 1), ("begin", self.begin, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PlanError(
                    f"{name} must be an integer of at least {least}, not {value!r}",
                    at=type(self).__name__,
                    why="it counts steps",
                    do=f"pass {least}, {least + 1}, ...",
                )

    def _left(self, step: int) -> float:
        """The share of the ramp that is left at a step: from 1 at `begin` to 0 at `begin + steps`."""
        return 1.0 - min(max((step - self.begin) / self.steps, 0.0), 1.0)


@dataclass(frozen=True)
class Linear(_Ramp):
    """A value that changes from `initial` at step `begin` to `final` at step `begin + steps` by equal amounts.

    It is constant before and after.

    >>> schedule = Linear(0.0, 0.8, steps=4)
    >>> [round(schedule(step), 3) for step in range(6)]
    [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
    """

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return self.final + (self.initial - self.final) * self._left(step)


@dataclass(frozen=True)
class AGP(_Ramp):
    """Automated gradual pruning: the value changes fast at first, and then more and more slowly.

    s(t) = s_final + (s_initial - s_final) * (1 - (t - begin) / steps)^3, constant before and after (Zhu and Gupta
    2017, "To prune, or not to prune", equation 1; https://arxiv.org/abs/1710.01878).

    >>> schedule = AGP(0.0, 0.8, steps=4)
    >>> [round(schedule(step), 2) for step in range(6)]
    [0.0, 0.46, 0.7, 0.79, 0.8, 0.8]
    """

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return self.final + (self.initial - self.final) * self._left(step) ** 3


def as_schedule(value: Any, *, what: str = "schedule") -> Schedule:
    """A schedule: `value` itself if it is a function, a constant one if it is a number.

    what: the name of the value, for the error. Raises `PlanError` for anything else.

    >>> as_schedule(0.3)
    Constant(value=0.3)
    """
    if fits(value, float):
        return Constant(float(value))
    if callable(value) and not isinstance(value, nn.Module):
        return value  # type: ignore[no-any-return]
    raise PlanError(
        f"{what} must be a number or a function of the step, not {type(value).__name__}",
        at=f"{what}={shown(value)}",
        why="it is asked for a value at each step",
        do="pass a float, or one of fxprune.schedules: Constant, Linear, AGP",
    )


def _finite(schedule: object, **values: Any) -> None:
    for name, value in values.items():
        if not fits(value, float) or not math.isfinite(value):
            raise PlanError(
                f"{name} must be a finite number, not {shown(value)}",
                at=type(schedule).__name__,
                why="the values of the steps are computed from it",
                do="pass a number such as 0.5",
            )
