"""Importance of the channels: one score per channel, higher means keep."""

from fxprune.criteria.contributions import Contributions, sample_contributions
from fxprune.criteria.filters import filter_norms, geometric_median_distances
from fxprune.criteria.magnitude import norm_scores
from fxprune.criteria.scores import Importance, scores_of
from fxprune.criteria.thinet import ThiNetImportance, thinet_importance

__all__ = [
    "Contributions",
    "Importance",
    "ThiNetImportance",
    "filter_norms",
    "geometric_median_distances",
    "norm_scores",
    "sample_contributions",
    "scores_of",
    "thinet_importance",
]
