"""Runs of a forward for its costs: on fake tensors, or on real ones if numbers decide."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from fxprune.capture.captured import Captured
from fxprune.capture.example_numbers import by_numbers
from fxprune.capture.fake_tensors import Faker, Real
from fxprune.capture.process_state import clean_caches
from fxprune.errors import CaptureError

T = TypeVar("T")


def on_fakes_or_real(captured: Captured, model: nn.Module, run: Callable[[Faker | Real], T]) -> T:
    """The result of a run on fake tensors; on real ones if these do not do, and the model has numbers.

    model: the one in `captured`, whose caches are as before afterwards.
    """
    with clean_caches(model):
        try:
            return run(Faker())
        except CaptureError as error:
            if not error.raised or captured.tensors.weightless or by_numbers(error):
                raise
            return run(Real())
