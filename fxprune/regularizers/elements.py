"""Penalties on single numbers: weights, and the scales of batch norms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune.arguments import checks_names, shown
from fxprune.errors import PlanError
from fxprune.regularizers.base import Regularizer
from fxprune.schedules import Schedule


class L1(Regularizer):
    """The sum of abs(w) over single weights (Han et al. 2015, https://arxiv.org/abs/1506.02626).

    Args:
        model, strength: see `Regularizer`.
        biases: also count parameters with one dimension: biases, and the affine parameters of norms.

    >>> net = nn.Linear(2, 1)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0, -2.0]]))
    >>> L1(net, 0.1)().item()
    0.30000001192092896
    """

    @checks_names
    def __init__(self, model: nn.Module, strength: float | Schedule, *, biases: bool = False) -> None:
        super().__init__(model, strength)
        if not isinstance(biases, bool):
            raise PlanError(
                "biases must be True or False",
                at=f"L1(biases={shown(biases)})",
                why=f"it is of the type {type(biases).__name__}",
                do="pass True to count parameters with one dimension too",
            )
        self.biases = biases

    def parameters(self) -> Iterable[nn.Parameter]:
        """Returns the parameters that count."""
        return [p for p in self.model.parameters() if self.biases or p.ndim > 1]

    def penalty(self) -> torch.Tensor:
        """Returns the sum of abs(w)."""
        return _sum_of_abs(self.parameters())


class BatchNormL1(Regularizer):
    """The sum of abs(weight) over all batch norms: network slimming (Liu et al. 2017, https://arxiv.org/abs/1708.06519).

    Afterwards `importance="bn_scale"` removes the channels whose scale became small.

    >>> BatchNormL1(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), 0.5)().item()
    1.5
    """

    @checks_names
    def __init__(self, model: nn.Module, strength: float | Schedule) -> None:
        super().__init__(model, strength)
        if not self.parameters():
            raise PlanError(
                "the model has no batch norm with a scale",
                at=f"BatchNormL1({type(model).__name__}())",
                why=f"no module of {type(model).__name__} is one",
                do="take GroupLasso or GroupSparsity",
            )

    def parameters(self) -> list[nn.Parameter]:
        """Returns the scales of all batch norms."""
        norms = (module for module in self.model.modules() if isinstance(module, _BatchNorm))
        return [norm.weight for norm in norms if norm.weight is not None]

    def penalty(self) -> torch.Tensor:
        """Returns the sum of abs(weight)."""
        return _sum_of_abs(self.parameters())


def _sum_of_abs(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    sums = [parameter.abs().sum() for parameter in parameters]
    return torch.stack(sums).sum() if sums else torch.zeros(())
