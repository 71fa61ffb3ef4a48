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
from fxprune.criteria import fisher_importance, obs_importance, taylor_importance, thinet_importance
from tests.benchmarks.choosing.tasks import Budget, Task

SEARCHED = "searched"

NOISY = "searched, noise"
"""The widths of the search; the repair of the outputs takes more steps, with noise on its inputs. The numbers are those
that did best on signals of the training set that are no part of the calibration."""
LONGER = {"steps": 3000, "noise": 0.3}


@dataclass
class Ours:
    """fxprune on one task. Importances from data are made once, and serve all budgets."""

    task: Task
    traced: Any = field(init=False)

    def __post_init__(self) -> None:
        self.importance = functools.cache(self._importance)

    def ways(self) -> Iterator[str]:
        """The names of criteria."""
        if self.task.name == "minilm":
            yield from ("l2", "taylor")
        else:
            yield from ("l2", "lamp", "thinet", "obs", SEARCHED)
        if self.task.name == "signals":
            yield NOISY

    def small(self, criterion: str, budget: Budget) -> nn.Module:
        """A small model, not repaired."""
        if criterion in (SEARCHED, NOISY):
            return self._searched(budget)
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

    def repaired(self, small: nn.Module, mode: str, criterion: str) -> nn.Module:
        """A small model after its repair."""
        options: dict[str, Any] = LONGER if criterion == NOISY and mode == "outputs" else {}
        return fxprune.repair(small, self.task.model, self.task.batches, mode=mode, **options)

    def _searched(self, budget: Budget) -> nn.Module:
        """The widths that a search of 60 steps finds, from an even ratio by OBS, with the weights of the original."""
        model, inputs, batches = self.task.model, self.task.inputs, self.task.batches
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = fxprune.transform(
                model,
                inputs,
                keep={"macs": budget.share},
                importance="obs",
                data=batches,
                scope="search",
                repair=batches,
                ignore=self.task.head,
                seed=0,
                verify=False,
            )
            plan = fxprune.record(found).plan
            return fxprune.transform(model, inputs, plan=plan, verify=False)

    def _importance(self, criterion: str) -> Any:
        gradients: dict[str, Callable[..., Any]] = {"taylor": taylor_importance, "fisher": fisher_importance}
        if criterion in gradients:
            return gradients[criterion](self.task.model, self.task.labelled, loss=self.task.loss)
        if criterion == "obs":
            return obs_importance(self.task.model, self.task.batches)
        if criterion == "thinet":
            torch.manual_seed(0)
            return thinet_importance(self.task.model, self.task.batches)
        return criterion
