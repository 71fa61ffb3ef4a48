"""fxprune's ways to a small model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import fxprune
from fxprune.criteria import fisher_importance, taylor_importance, thinet_importance
from tests.benchmarks.choosing.tasks import Budget, Task


@dataclass
class Ours:
    """fxprune on one task. Importances from data are made once, and serve all budgets."""

    task: Task
    traced: Any = field(init=False)

    def __post_init__(self) -> None:
        self.importance = functools.cache(self._importance)

    def ways(self) -> Iterator[str]:
        """The names of criteria."""
        yield from ("l2", "taylor") if self.task.name == "minilm" else ("l2", "lamp", "thinet")

    def small(self, criterion: str, budget: Budget) -> nn.Module:
        """A small model, not repaired."""
        options: dict[str, Any] = {"ratio": budget.ratios} if budget.ratios else {"keep": {"macs": budget.share}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fxprune.transform(
                self.task.model,
                self.task.inputs,
                importance=self.importance(criterion),
                scope="global" if criterion == "lamp" and not budget.ratios else "local",
                ignore=() if budget.ratios else self.task.head,
                seed=0,
                verify=False,
                **options,
            )

    def repaired(self, small: nn.Module, mode: str) -> nn.Module:
        """A small model after its repair."""
        return fxprune.repair(small, self.task.model, self.task.batches, mode=mode)

    def _importance(self, criterion: str) -> Any:
        gradients: dict[str, Callable[..., Any]] = {"taylor": taylor_importance, "fisher": fisher_importance}
        if criterion in gradients:
            return gradients[criterion](self.task.model, self.task.labelled, loss=self.task.loss)
        if criterion == "thinet":
            torch.manual_seed(0)
            return thinet_importance(self.task.model, self.task.batches)
        return criterion
