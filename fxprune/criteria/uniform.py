"""Random scores: the baseline that a criterion has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fxprune.analysis.findings import Findings, Group
from fxprune.criteria.table import criterion
from fxprune.given_seeds import check_seed


@criterion("random")
def uniform(findings: Findings, groups: Sequence[Group], seed: int | None = None) -> npt.NDArray[np.float64]:
    """Uniform in [0, 1), the same scores for the same seed; another draw each time for None.

    Mittal et al. 2018, "Recovering from Random Pruning" (https://arxiv.org/abs/1801.10447), find little between it and
    other criteria once a network is trained again.

    Raises `PlanError` for a seed that is no integer of at least 0.
    """
    check_seed(seed)
    return np.random.default_rng(seed).random(findings.solution.channels)
