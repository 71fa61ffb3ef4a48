"""The moments at which a callback prunes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
                raise PlanError(f"{name} must be an integer of at least 1", why=f"it is {value!r}")
        if every_n_epochs is not None and every_n_steps is not None:
            raise PlanError("a pruner steps by epochs or by steps", why="both were given", do="give one of them")
        return cls(1 if every_n_steps is None and every_n_epochs is None else every_n_epochs, every_n_steps)

    def after_epoch(self, done: int) -> bool:
        """True if the pruner steps now. done: the epochs that are over."""
        return self.epochs is not None and done % self.epochs == 0

    def after_step(self, done: int) -> bool:
        """True if the pruner steps now. done: the steps that the optimizer has made."""
        return self.batches is not None and done % self.batches == 0
