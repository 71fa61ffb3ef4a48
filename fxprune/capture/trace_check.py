"""The comparison of a traced graph with the model that it was made from, on example inputs."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.inputs import Inputs
from fxprune.capture.kept_buffers import TAKE_FROM_SELF, called_parts
from fxprune.capture.module_copy import copy_module
from fxprune.capture.process_state import clean_caches, same_random_state
from fxprune.capture.symbolic import same_python_numbers
from fxprune.capture.values import leaves
from fxprune.errors import CaptureError

_MODES = {False: "evaluation", True: "training"}


def check_trace(model: nn.Module, traced: fx.GraphModule, inputs: Inputs) -> None:
    """Run a model and its graph in both modes, two calls each, on copies and with the same random numbers.

    Training is left out where the model itself raises. A model without numbers (on the meta device) is not compared.

    Raises `CaptureError` if the graph gives something else than the model, or if the model raises in evaluation mode.
    """
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        return
    for training, mode in _MODES.items():
        try:
            expected = _results(model, model, inputs, training)
        except Exception as error:
            if training:
                return
            why = f"{type(error).__name__}: {error}"
            raise CaptureError("the model's forward raises", raised=True, why=why, do="check the inputs") from error
        try:
            got = _results(traced, model, inputs, training)
        except Exception as error:
            raise _differs(model, mode, f"it raises {type(error).__name__}: {error}") from error
        if len(expected) != len(got):
            raise _differs(model, mode, f"it gives {len(got) // 2} results instead of {len(expected) // 2}")
        for before, now in zip(expected, got, strict=True):
            if not _same(before, now):
                raise _differs(model, mode, "its results are other ones")


def _differs(model: nn.Module, mode: str, why: str) -> CaptureError:
    calls = called_parts(model)
    return CaptureError(
        f"the graph of {type(model).__name__} does something else than the model",
        why=f"in {mode} mode, {why}" + (f"; {calls[0]}" if calls else ""),
        do=TAKE_FROM_SELF
        if calls
        else 'keep the class (prefer="class"), or trace it yourself (torch.fx.Tracer) and pass the GraphModule',
    )


def _results(model: nn.Module, original: nn.Module, inputs: Inputs, training: bool) -> list[Any]:
    """The leaves of the results of two calls of a copy of a model, the original or its graph."""
    clones: dict[int, torch.Tensor] = {}
    copied = copy_module(model, lambda tensor: clones.setdefault(id(tensor), _clone(tensor)))
    copied.train(training)
    with torch.no_grad(), clean_caches(original), same_random_state(), same_python_numbers():
        torch.manual_seed(0)
        random.seed(0)
        return [leaf for _ in range(2) for leaf in leaves(copied(*inputs[0], **inputs[1]))]


def _clone(tensor: torch.Tensor) -> torch.Tensor:
    made = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made


def _same(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b)
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
