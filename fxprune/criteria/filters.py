"""Scores of the filters of one weight: one per output, from the weight alone; higher means keep."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 22
"""Distances that are held at a time, in elements of float64."""


def filter_norms(weight: Tensor, p: int = 2, dim: int = 0) -> Tensor:
    """score[o] = (sum over all other indices of |w[o, ...]|^p)^(1/p), in float64.

    With p = 1 the criterion of Li et al. 2016, "Pruning Filters for Efficient ConvNets"
    (https://arxiv.org/abs/1608.08710, section 3.1).

    Args:
        weight: [.., outputs, ..].
        dim: the dimension of the outputs.

    >>> filter_norms(torch.tensor([[3.0, 4.0], [0.0, -1.0]])).tolist()
    [5.0, 1.0]
    """
    norms: Tensor = torch.linalg.vector_norm(_rows(weight, dim), p, dim=1)
    return norms


def geometric_median_distances(weight: Tensor, dim: int = 0) -> Tensor:
    """score[o] = sum over j of ||w[o, ...] - w[j, ...]||_2, in float64.

    The filters with the smallest sums are nearest to the geometric median of all, and best replaced by the others
    (He et al. 2019, "Filter Pruning via Geometric Median"; https://arxiv.org/abs/1811.00250). A distance
    of 0 may come out as 1e-8 of the norm of the filters without their mean, others are exact to float64 rounding.

    Args:
        weight: [.., outputs, ..]; one number per output is a filter too.
        dim: the dimension of the outputs.

    >>> geometric_median_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])).round(decimals=2).tolist()
    [6.0, 9.24, 5.24]
    """
    rows = _rows(weight, dim)
    rows = rows - rows.mean(0)  # the squares that torch.cdist subtracts from each other are small then
    step = max(1, BLOCK // max(len(rows), 1))
    return torch.cat([torch.cdist(block, rows).sum(1) for block in torch.split(rows, step)])


def _rows(weight: Tensor, dim: int) -> Tensor:
    """[outputs, everything else] in float64."""
    return (
        weight.detach()
        .movedim(dim, 0)
        .flatten(1 if weight.ndim > 1 else 0)
        .to(torch.float64)
        .view(weight.shape[dim], -1)
    )
