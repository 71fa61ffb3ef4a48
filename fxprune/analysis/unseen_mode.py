"""A mode in which the walks of a model raise: whether the model itself does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from fxprune.analysis.findings import Subject
from fxprune.capture.fake_tensors import Real
from fxprune.capture.inputs import Inputs
from fxprune.capture.modes import RunMode, in_mode, random_decisions
from fxprune.capture.process_state import no_caches
from fxprune.capture.seeds import told_seeds
from fxprune.capture.walk import walk
from fxprune.errors import CaptureError


def reason_for_unseen(
    subject: Subject, mode: RunMode, method: str, tries: Sequence[Inputs], error: CaptureError
) -> str:
    """The reason why forward, or a method, was not looked at in a mode.

    Walks on fake tensors may raise where the model does not: it decides by numbers in that mode alone. So it is called
    on real tensors too, unless there are none.

    Args:
        method: the name of the method, "" for forward.
        tries: the inputs of the walks, which have all raised.
        error: what the first of them raised. It is raised again if the model runs on real tensors, and can be walked on
            them.
    """
    captured, called = subject.captured, "it" if method else "forward"
    if captured.real or captured.tensors.weightless:
        return f"{called} raises there: {error.first_why}"
    errors = []
    for inputs in tries:
        try:
            _call_on_numbers(subject, mode, method, inputs)
        except CaptureError as other:
            errors.append(other)
        else:
            if captured.keeps_class:
                raise error
            return f"{called} decides by numbers there, which the analysis of a graph does not know"
    return f"{called} raises there: {errors[0].first_why}"


def _call_on_numbers(subject: Subject, mode: RunMode, method: str, inputs: Inputs) -> None:
    """Call a copy of the model with real tensors in a mode. Raises `CaptureError` if that raises."""
    captured, faker = subject.captured, Real()
    module, arguments = faker.module(captured.module), captured.arguments(inputs, method)
    with told_seeds(), no_caches(subject.model), in_mode(module, mode.training):
        walk(captured.graph, module, faker, arguments, _only_run, (random_decisions(),), gradients=mode.gradients)


def _only_run(node: fx.Node, execute: Callable[[], Any]) -> Any:
    """The result of a node, of which nothing is kept."""
    return execute()
