"""Ready pruners: each scores the outputs of a layer and prunes those with the lowest scores."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.arguments import checks_arguments, fits
from fxprune.criteria import filter_norms, geometric_median_distances, taylor_scores
from fxprune.errors import PlanError
from fxprune.given_seeds import generator_of
from fxprune.ops.layers import output_dim
from fxprune.pruner.base import BasePruner
from fxprune.pruner.parametrization import pruning_of
from fxprune.schedules import Schedule, as_schedule


class ScoredPruner(BasePruner):
    """Prunes in each step the outputs with the lowest scores of each layer, up to a share of `sparsity_level`.

    The level is a share of all outputs of a layer, rounded down to whole outputs. Pruned outputs stay pruned: only the
    others are scored, and a lower level brings no output back.

    Args:
        sparsity_level: a number in [0, 1), or a schedule: a function of the number of steps done before, such as
            `fxprune.schedules.AGP`. {"sparsity_level": ...} in the config of `prepare` sets it for one layer.
        also_prune_bias: see `BasePruner`.
    """

    known_settings = ("sparsity_level",)

    def __init__(self, sparsity_level: float | Schedule = 0.5, *, also_prune_bias: bool = True) -> None:
        super().__init__({"sparsity_level": sparsity_level}, also_prune_bias)
        _level(sparsity_level, 0)
        self._highest = 0.0

    @abc.abstractmethod
    def scores(self, layer: nn.Module, weight: Tensor, dim: int) -> Tensor:
        """Returns one score per output, higher = keep. `weight` has only the kept outputs, along `dim`."""

    def step(self) -> None:
        """Prunes up to the levels for this step; see `BasePruner.step`."""
        self._highest = 0.0
        super().step()

    def update_mask(self, layer: nn.Module, **kwargs: Any) -> None:
        """Prunes the outputs with the lowest scores, until the share of pruned outputs reaches the level."""
        unknown = sorted(set(kwargs) - {"sparsity_level"})
        if unknown:
            raise PlanError(
                f"there is no setting {unknown[0]!r}",
                why="the setting of this pruner is 'sparsity_level'",
                do="leave it out",
            )
        level = _level(kwargs["sparsity_level"], self.steps)
        self._highest = max(self._highest, level)
        pruning = pruning_of(layer)
        more = int(level * pruning.size + 1e-9) - len(pruning.pruned_outputs)
        if more <= 0:
            return
        original: Any = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
        dim = output_dim(layer, original.ndim)
        scores = self.scores(layer, original.detach().index_select(dim, pruning.kept), dim)
        if scores.isnan().any():
            raise PlanError(
                "scores are NaN",
                why=f"{int(scores.isnan().sum())} of {len(scores)}, by NaN in the weight",
                do="load sound weights, or repair the training",
            )
        lowest = scores.argsort(stable=True)[:more].to(pruning.kept.device)
        pruning.pruned_outputs.update(pruning.kept[lowest])

    def _asks(self) -> bool:
        return self._highest > 0

    def _why_nothing(self) -> str:
        if not self.steps or not self._highest:
            return super()._why_nothing()
        widest = max(pruning_of(t.layer).size for t in self.targets)
        return f"a sparsity_level of {self._highest:g} is less than one of the {widest} outputs of the widest layer"


class RandomPruner(ScoredPruner):
    """Prunes outputs at random.

    Args:
        seed: the seed of the choices; None uses the global generator of torch. Processes that train one model
            together need the same seed.
    """

    @checks_arguments()
    def __init__(
        self, sparsity_level: float | Schedule = 0.5, *, also_prune_bias: bool = True, seed: int | None = None
    ) -> None:
        super().__init__(sparsity_level, also_prune_bias=also_prune_bias)
        self._generator = None if seed is None else generator_of(seed)

    def scores(self, layer: nn.Module, weight: Tensor, dim: int) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(weight.shape[dim], generator=self._generator)


class L1Pruner(ScoredPruner):
    """Prunes the filters with the smallest norm sum |w| (Li et al. 2016, "Pruning Filters for Efficient ConvNets").

    >>> import torch
    >>> layer = torch.nn.Linear(1, 4)
    >>> layer.weight.data = torch.tensor([[3.0], [-1.0], [0.5], [-4.0]])
    >>> pruner = L1Pruner(0.5)
    >>> pruner.prepare(torch.nn.Sequential(layer), None)
    >>> pruner.step()
    >>> pruner.masks()
    {'0': tensor([ True, False, False,  True])}
    """

    def scores(self, layer: nn.Module, weight: Tensor, dim: int) -> Tensor:
        """sum |w|."""
        return filter_norms(weight, 1, dim)


class L2Pruner(ScoredPruner):
    """Prunes the filters with the smallest Euclidean norm."""

    def scores(self, layer: nn.Module, weight: Tensor, dim: int) -> Tensor:
        """(sum w^2)^(1/2)."""
        return filter_norms(weight, 2, dim)


class FPGMPruner(ScoredPruner):
    """Prunes the filters nearest to all others (He et al. 2019, "Filter Pruning via Geometric Median").

    Distances are taken between the filters that are not pruned.
    """

    def scores(self, layer: nn.Module, weight: Tensor, dim: int) -> Tensor:
        """sum over j of ||w - w_j||."""
        return geometric_median_distances(weight, dim)


class SaliencyPruner(ScoredPruner):
    """Prunes the filters whose removal changes the loss least, by a criterion of your choice.

    "magnitude" sums |w|, as `torch.ao.pruning.SaliencyPruner` does, and needs no data. "taylor" sums |w * dL/dw|, the
    first-order change of the loss if one weight at a time becomes zero. These are the terms of Molchanov et al. 2019,
    "Importance Estimation for Neural Network Pruning" (https://arxiv.org/abs/1906.10771), in absolute value. For it,
    call `step` between `backward` and `zero_grad`. Gradients of several batches add up as usual.

    With "taylor", `step` raises `PlanError` if a weight has no gradient.
    """

    def __init__(
        self,
        sparsity_level: float | Schedule = 0.5,
        *,
        also_prune_bias: bool = True,
        criterion: str = "magnitude",
    ) -> None:
        super().__init__(sparsity_level, also_prune_bias=also_prune_bias)
        if criterion not in ("magnitude", "taylor"):
            raise PlanError(
                f"there is no criterion {criterion!r}",
                why='the criteria are "magnitude" and "taylor"',
                do='pass "magnitude" or "taylor"',
            )
        self.criterion = criterion

    def scores(self, layer: nn.Module, weight: Tensor, dim: int) -> Tensor:
        """sum |w|, or sum |w * dL/dw|."""
        if self.criterion == "magnitude":
            return filter_norms(weight, 1, dim)
        original: Any = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
        if original.grad is None:
            frozen = "" if original.requires_grad else ", which is frozen (requires_grad=False)"
            raise PlanError(
                "the criterion is the gradient, and there is none",
                why=f"no backward has reached this weight{frozen}",
                do='call step between backward and zero_grad, or use criterion="magnitude"',
            )
        return taylor_scores(weight, original.grad.index_select(dim, pruning_of(layer).kept), dim)


def _level(value: Any, step: int) -> float:
    level = as_schedule(value, what="sparsity_level")(step)
    if not fits(level, float) or not 0 <= level < 1:
        raise PlanError(
            f"sparsity_level must be in [0, 1), not {level!r} (step {step})",
            why="it is the share of outputs that go; at least one of a layer stays",
            do="pass sparsity_level=0.5, or another share",
        )
    return float(level)
