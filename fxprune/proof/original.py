"""The original model itself, on its example inputs: whether it runs says whose error it is that there is no reference.

The reference may fail where the original does not, as where a decision by its zeros leaves a list empty.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from fxprune.analysis.findings import Findings
from fxprune.capture.error_place import line_of, missing_copy, module_of_error
from fxprune.capture.fake_tensors import Real
from fxprune.capture.inputs import Inputs
from fxprune.capture.methods import call_method
from fxprune.capture.process_state import clean_caches, same_random_state, silence
from fxprune.capture.walk import NUMBERS
from fxprune.errors import CaptureError, text_of
from fxprune.offloaded import is_dispatched


def error_of_original(findings: Findings) -> CaptureError | None:
    """The error that names the place, if the model itself raises on an example input.

    It has to raise in its own modes and in evaluation mode. None if it runs in one of them, has no numbers, or is
    dispatched by accelerate.
    """
    model = findings.model
    if is_dispatched(model) or findings.captured.tensors.weightless:
        return None
    calls = [(inputs, "") for inputs in (findings.inputs, *findings.subject.more)]
    calls += [(call.inputs, call.name) for call in findings.subject.methods]
    for inputs, method in calls:
        errors = [_raised(model, inputs, method, evaluation) for evaluation in (False, True)]
        first = errors[0]
        if first is not None and all(errors):
            return first
    return None


def _raised(model: nn.Module, inputs: Inputs, method: str, evaluation: bool) -> CaptureError | None:
    """The error of a copy with the same parameters, as its user calls it, in its own modes or in evaluation mode."""
    real = Real()
    copied, given = real.module(model), real.tree(inputs)
    copied = copied.eval() if evaluation else copied
    try:
        with _undisturbed(model), real.mode:
            call_method(copied, method, given) if method else copied(*given[0], **given[1])
    except Exception as error:
        if missing_copy(error):
            return None
        line = line_of(error)
        return _told(error, f'the model\'s method "{method}"' if method else "the model's forward", copied, line)
    return None


def _told(error: Exception, what: str, copied: nn.Module, line: str) -> CaptureError:
    told = CaptureError(
        f"{what} raises",
        raised=True,
        at=(module_of_error(error, copied) or "the model") + (f" ({line})" if line else ""),
        why=text_of(error),
        do=NUMBERS,
    )
    told.__cause__ = error
    return told


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """No gradients, caches of the model's functions and random numbers as they were, nothing printed."""
    with torch.no_grad(), clean_caches(model), same_random_state(), silence():
        yield
