"""A layer that sets small activations to zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import InputError, PlanError
from fxprune.ops import Operand
from fxprune.ops.leaves import LeafCall, leaf
from fxprune.sparse.activations.thresholds import Threshold, as_threshold


class ThresholdActivation(nn.Module):
    """y = 0 where |x| < threshold, else x; the gradient passes where the activation survives, and is 0 elsewhere.

    What equals the threshold survives, and so does NaN: a number that went wrong is not hidden. The threshold itself
    gets no gradient.

    Args:
        threshold: a number; a schedule of it (`fxprune.schedules`), which `step()` advances; or what follows a target
            sparsity, `fxprune.sparse.Quantile` or `Histogram`, which learns in training and is fixed in
            evaluation; before its first training batch, the threshold is 0 and nothing is set to zero.
        magnitude: compare |x|, which is right for signed activations and equal to comparing x behind a ReLU. False
            compares x itself: y = 0 where x < threshold, so that a threshold of 0 is a ReLU.
        track: keep the share of zeros in the last output, in training and evaluation, which costs a pass over it.

    Buffers, all in `state_dict`: `threshold`, in use in evaluation; `steps`, how many times `step()` was called;
    `zeros`, the share of zeros in the last output, NaN before the first; and those of the rule. They are what a
    checkpoint holds of a schedule: the schedule itself is code.

    >>> layer = ThresholdActivation(0.5)
    >>> layer(torch.tensor([-1.0, -0.2, 0.5, 0.4]))
    tensor([-1.0000,  0.0000,  0.5000,  0.0000])
    >>> layer.zeros
    tensor(0.5000)
    """

    threshold: Tensor
    steps: Tensor
    zeros: Tensor

    def __init__(self, threshold: Any, *, magnitude: bool = True, track: bool = True) -> None:
        super().__init__()
        for name, value in (("magnitude", magnitude), ("track", track)):
            if not isinstance(value, bool):
                raise PlanError(f"{name} must be True or False, not {value!r}", at="ThresholdActivation")
        self.rule: Threshold = as_threshold(threshold)
        self.magnitude, self.track = magnitude, track
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("zeros", torch.full((), torch.nan))
        for name, tensor in self.rule.buffers().items():
            self.register_buffer(name, tensor)
        self.rule.advance(self, 0)

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same shape."""
        values = input.detach().abs() if self.magnitude else input.detach()
        threshold = self.threshold
        if self.training and input.numel():
            with torch.no_grad():
                threshold = self.rule.observe(self, values)
        output = input.masked_fill(values < threshold, 0)
        if self.track and input.numel():
            with torch.no_grad():
                self.zeros.copy_(1 - torch.count_nonzero(output) / output.numel())
        return output

    @torch.no_grad()
    def step(self) -> None:
        """Go on by one step of the schedule, if there is one: after each optimizer step, or each epoch."""
        self.rule.advance(self, int(self.steps) + 1)
        self.steps.add_(1)

    def extra_repr(self) -> str:
        """The source of the threshold."""
        return f"{self.rule}, magnitude={self.magnitude}"


def step_thresholds(model: nn.Module) -> int:
    """Call `step()` of every `ThresholdActivation` in a model once; returns how many there are.

    Raises `PlanError` where there is none.

    >>> step_thresholds(nn.Sequential(nn.Linear(2, 2), ThresholdActivation(0.1)))
    1
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    layers = [module for module in model.modules() if isinstance(module, ThresholdActivation)]
    if not layers:
        raise PlanError("the model has no ThresholdActivation", do="insert some with insert_thresholds")
    for layer in layers:
        layer.step()
    return len(layers)


@leaf(ThresholdActivation)
def _threshold(call: LeafCall, input: Operand) -> Operand:
    """y[i] = x[i] or 0: a channel that is zero stays zero. The threshold is one number, and stays what it is."""
    return call.operand(input.vectors, input.zero)
