"""Taylor: the change of the loss to first order, from weights and their gradients."""

from __future__ import annotations

from torch import Tensor

from fxprune.arguments import checks_arguments
from fxprune.criteria.magnitude import filter_norms
from fxprune.errors import PlanError


@checks_arguments("weight", "gradient", "dim")
def taylor_scores(weight: Tensor, gradient: Tensor, dim: int = 0) -> Tensor:
    """score[o] = sum over all other indices of |w[o, ...] * dL/dw[o, ...]|, in float64.

    The change of the loss to first order if one weight at a time were zero: the first-order terms of Molchanov et al.
    2019, "Importance Estimation for Neural Network Pruning" (https://arxiv.org/abs/1906.10771), by absolute value.

    Args:
        weight: [.., outputs, ..].
        gradient: of the weight's shape.
        dim: the dimension of the outputs.

    >>> import torch
    >>> taylor_scores(torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[4.0, 1.0], [-1.0, 9.0]])).tolist()
    [6.0, 3.0]
    """
    if weight.shape != gradient.shape:
        why = f"their shapes are {tuple(weight.shape)} and {tuple(gradient.shape)}"
        raise PlanError("weight and gradient do not fit each other", why=why, do="pass `weight.grad`")
    return filter_norms(weight * gradient, 1, dim)
