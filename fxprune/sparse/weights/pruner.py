"""The base class of the pruners of single weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.errors import PlanError
from fxprune.sparse.weights.mask import MaskedWeight, sparsity_report, squash_masks

CALLER = 4
"""The stack level for warnings, so that they point at the line of the user that called `step`."""


class WeightPruner:
    """The masks of a model's weights, and a count of steps; `step` of a subclass changes the masks."""

    model: nn.Module
    steps: int
    _weights: dict[str, MaskedWeight]

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Name of the weight -> its mask, True = keep."""
        return {name: weight.mask for name, weight in self._weights.items()}

    @property
    def sparsities(self) -> dict[str, float]:
        """Name of the weight -> the share of it that is masked."""
        return {name: weight.pruned / weight.mask.numel() for name, weight in self._weights.items()}

    def squash(self) -> nn.Module:
        """Writes the zeros into the parameters and removes the masks, in place; returns the model."""
        return squash_masks(self.model)

    def report(self) -> str:
        """Returns a table with the sparsity of every weight."""
        return sparsity_report(self._weights)

    def _refuse_nan(self) -> None:
        for name, weight in self._weights.items():
            if bool(weight.dense.isnan().any()):
                do = "go back to a checkpoint, and train with a smaller learning rate"
                raise PlanError("a weight contains NaN", at=f'"{name}"', why="training has diverged", do=do)


def warn_of_empty(weights: Mapping[str, MaskedWeight]) -> None:
    """Warns of weights in which everything is masked."""
    empty = [name for name, weight in weights.items() if weight.pruned == weight.mask.numel()]
    if empty:
        listed = ", ".join(f'"{name}"' for name in empty[:4]) + (", ..." if len(empty) > 4 else "")
        text = f"nothing is left of {listed}: the layer passes nothing on; ask for less there, or leave the layer out"
        warnings.warn(text, UserWarning, stacklevel=CALLER + 1)


def loaded_steps(state: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """Returns the number of steps in the state of a pruner. Raises `PlanError` unless the state has these keys."""
    if not isinstance(state, Mapping) or set(state) != set(keys):
        have = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise PlanError(
            "not the state of this pruner",
            at="load_state_dict",
            why=f"it has {have}, not {sorted(keys)}",
            do="pass what state_dict of such a pruner gave",
        )
    steps = state["steps"]
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise PlanError(
            f"steps must be an integer of at least 0, not {steps!r}",
            at="the state of a pruner",
            why="it counts the steps that were made",
            do="pass what state_dict of such a pruner gave",
        )
    return steps
