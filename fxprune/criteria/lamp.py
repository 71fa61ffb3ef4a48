"""LAMP: the share that a channel has of its group's weights, among those that are not smaller."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fxprune.analysis.findings import Findings, Group
from fxprune.criteria.magnitude import norm_scores
from fxprune.criteria.table import criterion


@criterion("lamp", comparable=True)
def lamp(findings: Findings, groups: Sequence[Group], seed: int | None = None) -> npt.NDArray[np.float64]:
    """The scores of Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", of channels.

    https://arxiv.org/abs/2010.07611, equation 3, with n[c] the l2 norm of what is removed with channel c:

        score[c] = n[c]^2 / sum over channels d of the group with n[d] >= n[c] of n[d]^2

    The largest channel of each group has score 1, so that scores of different groups compare.
    """
    squares = norm_scores(findings, 2) ** 2
    scores = np.zeros_like(squares)
    for group in groups:
        own = squares[group.channels]
        order = np.argsort(own, kind="stable")
        above = np.cumsum(own[order][::-1])[::-1]  # the sum of a square and of all that follow it
        scores[group.channels[order]] = own[order] / np.where(above > 0, above, 1.0)
    return scores
