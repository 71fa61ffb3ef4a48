"""A layer that sets small activations to zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.arguments import checks_names
from fxprune.errors import InputError, PlanError
from fxprune.ops import Operand
from fxprune.ops.leaves import LeafCall, leaf
from fxprune.sparse.activations.thresholds import Threshold, as_threshold


class ThresholdActivation(nn.Module):
    """y = 0 where |x| < threshold, else x; the gradient is 0 where y was set to zero.

    Activations equal to the threshold stay. NaN stays too, so that errors are not hidden. The threshold itself gets no
    gradient.

    Args:
        threshold: a number; or a schedule of it (`fxprune.schedules`), which `step()` advances; or a rule that aims at
            a sparsity, `fxprune.sparse.Quantile` or `fxprune.sparse.Histogram`. A rule learns the threshold in training
            mode and keeps it in evaluation mode; before its first training batch the threshold is 0.
        magnitude: True compares |x|, for signed activations; after a ReLU it makes no difference. False compares x
            itself: y = 0 where x < threshold, so that a threshold of 0 is a ReLU.
        track: store the share of zeros in the last output, which costs one pass over the output.

    Buffers, all in `state_dict`: `threshold`, used in evaluation mode; `steps`, the number of calls of `step()`;
    `zeros`, the share of zeros in the last output, NaN before the first one; and the buffers of the rule. A checkpoint
    stores the state of a schedule in them, and not the schedule itself.

    >>> layer = ThresholdActivation(0.5)
    >>> layer(torch.tensor([-1.0, -0.2, 0.5, 0.4]))
    tensor([-1.0000,  0.0000,  0.5000,  0.0000])
    >>> layer.zeros
    tensor(0.5000)
    """

    is_threshold = True
    threshold: Tensor
    steps: Tensor
    zeros: Tensor

    @checks_names
    def __init__(self, threshold: Any, *, magnitude: bool = True, track: bool = True) -> None:
        super().__init__()
        for name, value in (("magnitude", magnitude), ("track", track)):
            if not isinstance(value, bool):
                raise PlanError(
                    f"{name} must be True or False, not {value!r}",
                    at="ThresholdActivation",
                    why="it is a switch",
                    do=f"pass {name}=True or {name}=False",
                )
        self.rule: Threshold = as_threshold(threshold)
        self.magnitude, self.track = magnitude, track
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("zeros", torch.full((), torch.nan))
        for name, tensor in self.rule.buffers().items():
            self.register_buffer(name, tensor)
        self.rule.advance(self, 0)

    def forward(self, input: Tensor) -> Tensor:
        """Returns a tensor of the same shape; any shape is allowed."""
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
        """Advances the schedule, if there is one, by one step: call it after each optimizer step, or each epoch."""
        self.rule.advance(self, int(self.steps) + 1)
        self.steps.add_(1)

    def extra_repr(self) -> str:
        """The rule of the threshold, and what is compared with it."""
        return f"{self.rule}, magnitude={self.magnitude}"


@checks_names
def step_thresholds(model: nn.Module) -> int:
    """Calls `step()` of every `ThresholdActivation` in a model once; returns the number of these layers.

    Raises `PlanError` if there is none.

    >>> step_thresholds(nn.Sequential(nn.Linear(2, 2), ThresholdActivation(0.1)))
    1
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model must be a torch.nn.Module, not {type(model).__name__}",
            at=f"{type(model).__name__}",
            why="its modules are looked at",
            do="pass the model itself",
        )
    layers = [module for module in model.modules() if isinstance(module, ThresholdActivation)]
    if not layers:
        raise PlanError(
            "the model has no ThresholdActivation",
            at=type(model).__name__,
            why="none of its modules is one",
            do="insert some with insert_thresholds",
        )
    for layer in layers:
        layer.step()
    return len(layers)


@leaf(ThresholdActivation)
def _threshold(call: LeafCall, input: Operand) -> Operand:
    """y[i] = x[i] or 0: a channel that is zero stays zero. The threshold is one number and no channel."""
    return call.operand(input.vectors, input.zero)
