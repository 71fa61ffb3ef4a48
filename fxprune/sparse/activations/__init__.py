"""Thresholds after activations, and statistics of activations.

A `ThresholdActivation` sets small activations to zero; `insert_thresholds` puts one after every activation of a model.
`activation_statistics` measures how often each channel is zero and how large it is; `importance_from` turns that into
an importance.
"""

from fxprune.criteria.activation import ActivationStatistics, LayerStatistics, importance_from
from fxprune.criteria.statistics import activation_statistics
from fxprune.sparse.activations.insertion import Inserted, insert_thresholds
from fxprune.sparse.activations.layers import ThresholdActivation, step_thresholds
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
