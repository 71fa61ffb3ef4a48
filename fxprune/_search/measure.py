"""Measures of a model: the user's score, a loss, or the error of its outputs against those of the original."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune._repair.batches import DataPart
from fxprune._repair.lanes import Model
from fxprune._repair.outputs import relative_squared_error
from fxprune._search.samples import Samples, evaluating
from fxprune.arguments import shown
from fxprune.errors import FxpruneError, InputError, text_of


@dataclass(frozen=True)
class Measure:
    """One number for a model.

    name: "score", of which more is better, or "loss" or "error", of which less is better. of: a function from a model
    to its number. source: the name of the user's function, by which a file knows it.
    """

    name: str
    of: Callable[[nn.Module], float]
    source: str = ""

    def merit(self, value: float) -> float:
        """The number, so that more is better."""
        return value if self.name == "score" else -value


def measure_of(
    model: nn.Module, samples: Samples | None, score: Callable[[nn.Module], Any] | None, loss: Any = None
) -> Measure:
    """The measure of a request: the score that is given, else the loss, else the error of the outputs.

    samples: the data; its judging part is used for a loss and for the error. Raises `InputError` if there is nothing to
    measure by.
    """
    if score is not None:
        function = score
        return Measure("score", lambda small: number_of(function, small), _name(score))
    if samples is None:
        raise InputError(
            "there is nothing to measure by",
            why="neither a score nor data are given",
            do="pass a function from a model to a number, such as its accuracy, or batches of inputs (`repair=`)",
        )
    if loss is not None:
        return Measure("loss", lambda small: _mean_loss(loss, small, samples.batches), _name(loss))
    return Measure("error", _Error(model, samples))


def _name(function: Any) -> str:
    """The name of a function, which does not change from run to run."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def number_of(function: Callable[[nn.Module], Any], model: nn.Module) -> float:
    """The number that a user's function gives a model. It gets a copy, which it may change.

    Raises `InputError` for a function that raises, and for what is no finite number.
    """
    try:
        value = function(copy.deepcopy(model))
    except FxpruneError:
        raise
    except Exception as error:
        raise InputError(
            "the score raises an error",
            at=f"score of the {type(model).__name__}",
            why=text_of(error),
            do="pass a function from a model",
        ) from error
    return finite(value, "the score", at=f"score of the {type(model).__name__}")


def finite(value: Any, what: str, at: str = "") -> float:
    """The value as a float. Raises `InputError` if it is no finite number. at: where it was asked for."""
    made = math.nan
    value = value.detach() if isinstance(value, torch.Tensor) else value
    if not isinstance(value, bool | str) and getattr(value, "dtype", None) is not torch.bool:
        with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):
            made = float(value)
    if not math.isfinite(made):
        raise InputError(
            f"{what} is no finite number",
            at=at,
            why=f"it is {shown(value)}",
            do="return one number, such as the share of right answers",
        )
    return made


def _mean_loss(loss: Callable[[nn.Module, Any], Any], model: nn.Module, batches: list[Any]) -> float:
    """The mean of a loss over batches."""
    with evaluating(model), torch.no_grad():
        return sum(finite(loss(model, batch), "the loss") for batch in batches) / len(batches)


class _Error:
    """The relative squared error of a model's outputs against those of the original, on the samples that judge."""

    def __init__(self, original: nn.Module, samples: Samples) -> None:
        self._parts = [DataPart(inputs, number) for number, inputs in enumerate(samples.judging)]
        with evaluating(original):
            self._wanted = [Model(original).run(part) for part in self._parts]

    def __call__(self, model: nn.Module) -> float:
        with evaluating(model):
            run = Model(model, "a small model").run
            return relative_squared_error(zip(map(run, self._parts), self._wanted, strict=True))
