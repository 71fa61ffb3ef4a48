"""Batch-norm scale: the factor that a batch norm gives to a channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from fxprune.analysis.findings import Findings, Group
from fxprune.analysis.members import Member
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
    without = [group.name for group in groups if not _norms(group)]
    if without:
        listed = ", ".join(f'"{name}"' for name in without)
        raise PlanError(
            "bn_scale cannot rank a group without a batch norm",
            at=f"group {listed}" if len(without) == 1 else f"groups {listed}",
            why="none of its members is the weight of a batch norm" if len(without) == 1 else "they have none",
            do=f'leave them out with ignore=[{listed}], or use another importance such as "lamp"',
        )
    for group in groups:
        for member in _norms(group):
            values = member.tensor.detach().abs().double()
            scores[group.channels] += member.per_channel(values, group.size).cpu().numpy()
    return scores


def _norms(group: Group) -> list[Member]:
    """The weights of batch norms in a group."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [m for m in group.members if isinstance(group.owner(m), kinds) and m.parameter.endswith("weight")]
