"""Batch-norm scale: the factor that a batch norm gives to a channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from fxprune.analysis.findings import Findings, Group
from fxprune.criteria.table import criterion
from fxprune.criteria.weights import refuse_without_values
from fxprune.errors import PlanError


@criterion("bn_scale", comparable=True)
def batch_norm_scale(findings: Findings, groups: Sequence[Group], seed: int | None = None) -> npt.NDArray[np.float64]:
    """score[c] = sum over the batch norms of the group of |weight[c]|

    Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming"
    (https://arxiv.org/abs/1708.06519). It says most where training has drawn these weights to zero.

    Raises `PlanError` for a group without a batch norm that has weights.
    """
    refuse_without_values(findings, "bn_scale")
    scores = np.zeros(findings.solution.channels)
    for group in groups:
        norms = [
            member
            for member in group.members
            if isinstance(group.owner(member), nn.modules.batchnorm._BatchNorm) and member.parameter.endswith("weight")
        ]
        if not norms:
            raise PlanError(
                "bn_scale cannot rank a group without a batch norm",
                at=f'group "{group.name}"',
                why="none of its members is the weight of a batch norm",
                do='leave the group out with ignore, or use another importance such as "lamp"',
            )
        for member in norms:
            values = member.tensor.detach().abs().double()
            scores[group.channels] += member.per_channel(values, group.size).cpu().numpy()
    return scores
