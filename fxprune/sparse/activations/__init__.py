"""Thresholds behind activations, and statistics of activations.

A `ThresholdActivation` sets small activations to zero; `insert_thresholds` puts one behind every activation of a model.
`activation_statistics` says how often each channel is zero and how large it is, and `importance_from` makes an
importance of that.
"""

from fxprune.criteria.activation import ActivationStatistics, LayerStatistics, importance_from
from fxprune.sparse.activations.insertion import Inserted, insert_thresholds
from fxprune.sparse.activations.layers import ThresholdActivation, step_thresholds
from fxprune.sparse.activations.statistics import activation_statistics
from fxprune.sparse.activations.thresholds import Histogram, Quantile, Scheduled

__all__ = [
    "ActivationStatistics",
    "Histogram",
    "Inserted",
    "LayerStatistics",
    "Quantile",
    "Scheduled",
    "ThresholdActivation",
    "activation_statistics",
    "importance_from",
    "insert_thresholds",
    "step_thresholds",
]
