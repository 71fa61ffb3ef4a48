"""Moments at which a callback prunes, and inputs on the device of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.arguments import shown
from fxprune.errors import PlanError


@dataclass(frozen=True)
class When:
    """The moments of a training at which a pruner makes a step: every n epochs, or every n steps of the optimizer."""

    epochs: int | None = None
    batches: int | None = None

    @classmethod
    def of(cls, every_n_epochs: Any, every_n_steps: Any) -> When:
        """The moments that were asked for, by default after each epoch. Raises `PlanError` for both or neither."""
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                at, why = f"{name}={value!r}", "the pruner makes a step whenever so many are over"
                raise PlanError(f"{name} must be an integer of at least 1", at=at, why=why, do="pass 1, 2, 3, ...")
        if every_n_epochs is not None and every_n_steps is not None:
            at = f"every_n_epochs={every_n_epochs}, every_n_steps={every_n_steps}"
            raise PlanError("a pruner steps by epochs or by steps", at=at, why="both were given", do="give one of them")
        return cls(1 if every_n_steps is None and every_n_epochs is None else every_n_epochs, every_n_steps)

    def after_epoch(self, done: int) -> bool:
        """True if the pruner steps now. done: the epochs that are over."""
        return self.epochs is not None and done % self.epochs == 0

    def between(self, before: int, now: int) -> bool:
        """True if the pruner steps now. before, now: the steps that the optimizer had made and has made."""
        return self.batches is not None and now // self.batches > before // self.batches


def refuse_optimizer(options: Mapping[str, Any]) -> None:
    """Raises `PlanError` for an optimizer among the options of a pruner: those of the trainer follow."""
    if "optimizer" in options:
        raise PlanError(
            "a callback takes no optimizer",
            at=f"optimizer={shown(options['optimizer'])}",
            why="the optimizers of the trainer follow, and are made later",
            do="leave it out",
        )


def moved(inputs: Any, model: nn.Module) -> Any:
    """The inputs on the device of a model."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.utils._pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), inputs)
