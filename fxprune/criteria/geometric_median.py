"""Distance to the geometric median: filters that the others of their layer can best replace are removed first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.analysis.findings import Findings, Group
from fxprune.arguments import checks_arguments
from fxprune.criteria.table import criterion
from fxprune.criteria.weights import filters_of, refuse_without_values

BLOCK = 1 << 22
"""The most distances in memory at a time, in elements of float64."""


@criterion("fpgm")
def fpgm(findings: Findings, groups: Sequence[Group], seed: int | None = None) -> npt.NDArray[np.float64]:
    """The distances of a channel to the others of its group, by the weights of the producer, summed over its slots.

        score[c] = sum over slots i of c, over slots j of the group, of ||w[i, ...] - w[j, ...]||_2

    He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration"
    (https://arxiv.org/abs/1811.00250).
    """
    refuse_without_values(findings, "fpgm")
    scores = np.zeros(findings.solution.channels)
    for group in groups:
        made = group.producer
        filters = made.tensor.detach().index_select(made.dim, torch.from_numpy(made.slots).to(made.tensor.device))
        distances = geometric_median_distances(filters, made.dim).cpu().numpy()
        scores[group.channels] = np.bincount(made.index, weights=distances, minlength=group.size)
    return scores


@checks_arguments("weight", "dim")
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
    rows = filters_of(weight, dim)
    rows = rows - rows.mean(0)  # the squares that torch.cdist subtracts from each other are small then
    step = max(1, BLOCK // max(len(rows), 1))
    return torch.cat([torch.cdist(block, rows).sum(1) for block in torch.split(rows, step)])
