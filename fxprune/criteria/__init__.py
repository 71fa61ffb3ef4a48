"""Importance of the channels: one score per channel, higher means keep."""

from fxprune.criteria.filters import filter_norms, geometric_median_distances
from fxprune.criteria.magnitude import norm_scores
from fxprune.criteria.scores import Importance, scores_of

__all__ = ["Importance", "filter_norms", "geometric_median_distances", "norm_scores", "scores_of"]
