"""Sparse weights, connections and activations: masked, dynamic and frozen layers around the pass."""

from fxprune.sparse.activations import ThresholdActivation, step_thresholds
from fxprune.sparse.freezing import FreezeReport, freeze, unfreeze
from fxprune.sparse.importance import importance_from
from fxprune.sparse.insertion import Inserted, insert_thresholds
from fxprune.sparse.statistics import ActivationStatistics, LayerStatistics, activation_statistics
from fxprune.sparse.thresholds import Histogram, Quantile, Scheduled

__all__ = [
    "ActivationStatistics",
    "FreezeReport",
    "Histogram",
    "Inserted",
    "LayerStatistics",
    "Quantile",
    "Scheduled",
    "ThresholdActivation",
    "activation_statistics",
    "freeze",
    "importance_from",
    "insert_thresholds",
    "step_thresholds",
    "unfreeze",
]
