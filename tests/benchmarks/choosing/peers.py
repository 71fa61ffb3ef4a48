"""The same models made smaller by Torch-Pruning and by NVIDIA ModelOpt's FastNAS."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fxprune
from tests.benchmarks.choosing.tasks import Budget, Task

STEPS = 256
"""Ratios are tried in steps of 1 / STEPS."""

CRITERIA = {
    "random local": ("RandomImportance", {}),
    "l1 local": ("MagnitudeImportance", {"p": 1}),
    "l2 local": ("MagnitudeImportance", {"p": 2}),
    "fpgm local": ("FPGMImportance", {}),
    "bn scale local": ("BNScaleImportance", {}),
    "taylor local": ("TaylorImportance", {}),
    "hessian local": ("HessianImportance", {}),
    "l1 global": ("MagnitudeImportance", {"p": 1}),
    "l2 global": ("MagnitudeImportance", {"p": 2}),
    "fpgm global": ("FPGMImportance", {}),
    "lamp global": ("LAMPImportance", {}),
    "bn scale global": ("BNScaleImportance", {}),
    "taylor global": ("TaylorImportance", {}),
    "hessian global": ("HessianImportance", {}),
    "l2 isomorphic": ("MagnitudeImportance", {"p": 2}),
    "taylor isomorphic": ("TaylorImportance", {}),
}
"""Criterion and scope -> Torch-Pruning's class and its arguments."""

USUAL = tuple(
    name
    for name in CRITERIA
    if name not in ("l1 global", "fpgm global", "taylor isomorphic") and not name.startswith("hessian")
)
"""The criteria that are tried on each model: the best of them all on the first one, and those near them."""


class TorchPruning:
    """Torch-Pruning on one task. Rankings over several layers get `max_pruning_ratio=0.9`: they empty layers else."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.whole = fxprune.cost(task.model, task.inputs).macs
        self._gradients = self._hessian = None
        self._macs = functools.cache(self._share)

    def ways(self) -> Iterator[str]:
        """The names of the criteria that work on the task."""
        norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.task.model.modules())
        some = {"minilm": ("l2 local", "taylor local"), "resnet": tuple(CRITERIA)}
        for name in some.get(self.task.name, USUAL):
            if norms or not name.startswith("bn"):
                yield name

    def small(self, criterion: str, budget: Budget) -> nn.Module:
        """The largest small model within the budget, by bisection of the ratio."""
        if budget.ratios:
            if any(":" in name for name in budget.ratios):
                raise ValueError("with `head_pruning_ratio` alone it removes nothing, and says nothing")
            return self._pruned(criterion, ratios=budget.ratios)
        low, high = 0, STEPS  # high: the least ratio that is known to meet the budget
        asked = "l2 local" if criterion.endswith("local") else criterion  # the widths of even ratios are the same
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._macs(asked, middle) <= budget.share else (middle, high)
        if high == STEPS:
            raise ValueError("no ratio leaves so little")
        return self._pruned(criterion, high / STEPS)

    def _share(self, criterion: str, step: int) -> float:
        return fxprune.cost(self._pruned(criterion, step / STEPS), self.task.inputs).macs / self.whole

    def _pruned(self, criterion: str, ratio: float = 0.0, ratios: dict[str, float] | None = None) -> nn.Module:
        import torch_pruning

        torch.manual_seed(0)
        model = copy.deepcopy(self.task.model)
        kind, arguments = CRITERIA[criterion]
        importance = getattr(torch_pruning.importance, kind)(**arguments)
        self._give_gradients(model, importance)
        modules = dict(model.named_modules())
        scope = criterion.split()[-1]
        inputs = self.task.inputs
        forward = {"forward_fn": lambda one, given: one(**given).last_hidden_state} if isinstance(inputs, dict) else {}
        given = {modules[name]: share for name, share in (ratios or {}).items()}
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=importance,
            pruning_ratio=ratio,
            pruning_ratio_dict=given,
            global_pruning=scope != "local" and not ratios,
            isomorphic=scope == "isomorphic",
            max_pruning_ratio=0.9 if not ratios else 1.0,
            ignored_layers=[modules[self.task.head]] if not ratios else [],
            **self.task.options(model),
            **forward,
        )
        pruner.step()
        self.task.mend(model)
        return model.eval()

    def _give_gradients(self, model: nn.Module, importance: Any) -> None:
        """The gradients that a criterion reads: of the mean loss, or, for its Hessian, of single samples."""
        kind = type(importance).__name__
        if kind == "TaylorImportance":
            if self._gradients is None:
                self._gradients = _gradients(self.task, self.task.labelled)
            for parameter, gradient in zip(model.parameters(), self._gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
        elif kind == "HessianImportance":
            if self._hessian is None:
                x, y = self.task.labelled[0]
                self._hessian = [_gradients(self.task, [(x[i : i + 1], y[i : i + 1])]) for i in range(16)]
            importance.zero_grad()
            for some in self._hessian:
                for parameter, gradient in zip(model.parameters(), some, strict=True):
                    parameter.grad = None if gradient is None else gradient.clone()
                importance.accumulate_grad(model)


def _gradients(task: Task, batches: list[Any]) -> list[torch.Tensor | None]:
    model = copy.deepcopy(task.model)
    (sum(task.loss(model, batch) for batch in batches) / len(batches)).backward()
    return [parameter.grad for parameter in model.parameters()]


class FastNAS:
    """ModelOpt's FastNAS on one task, all widths allowed (`channel_divisor=1`; its default of 32 leaves no choice).

    A candidate's score is minus the loss on the labelled calibration data; FastNAS takes the statistics of batch norms
    anew for each. Its map of sensitivities is made once, and serves all budgets.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.whole = fxprune.cost(task.model, task.inputs).macs
        self._folder = tempfile.TemporaryDirectory()

    def ways(self) -> Iterator[str]:
        """One way."""
        yield "fastnas"

    def small(self, criterion: str, budget: Budget) -> nn.Module:
        """The largest small model within the budget; its own bound on FLOPs is bisected."""
        if budget.ratios:
            raise ValueError("FastNAS takes no ratios of single layers")
        low, high, best = 0.0, budget.share * 1.2, None
        for turn in range(8):
            asked = budget.share if not turn else (low + high) / 2
            made = self._searched(asked)
            kept = math.inf if made is None else fxprune.cost(made, self.task.inputs).macs / self.whole
            if kept <= budget.share:
                low, best = asked, made
                if kept > 0.97 * budget.share:
                    break
            else:
                high = asked
        if best is None:
            raise ValueError("FastNAS finds no subnet of so few MACs")
        return best

    def _searched(self, share: float) -> nn.Module | None:
        import modelopt.torch.prune
        from modelopt.torch.prune.fastnas import FastNASConfig

        torch.manual_seed(0)
        space = FastNASConfig().model_dump()
        for rules in space.values():
            for options in rules.values():
                options.update({key: 1 for key in options or () if key.endswith("divisor")})
        checkpoint = Path(self._folder.name) / "map.pth"
        config = {
            "data_loader": self.task.batches,
            "collect_func": lambda batch: batch,
            "score_func": self._score,
            "checkpoint": str(checkpoint),
            "max_iter_data_loader": len(self.task.batches),
            "verbose": False,
        }
        silent = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            warnings.simplefilter("ignore")
            try:
                made, _ = modelopt.torch.prune.prune(
                    copy.deepcopy(self.task.model),
                    mode=[("fastnas", space)],
                    constraints={"flops": f"{100 * share}%"},
                    dummy_input=self.task.inputs[:1],
                    config=config,
                )
            except ValueError as error:
                if "Profiling" in str(error):  # the least subnet is larger
                    return None
                raise
        return made.eval()

    def _score(self, model: nn.Module) -> float:
        with torch.no_grad():
            losses = [float(self.task.loss(model, pair)) for pair in self.task.labelled]
        return -sum(losses) / len(losses)
