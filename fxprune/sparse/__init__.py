"""Sparse weights, connections and activations: masked, dynamic and frozen layers around the pass."""

from fxprune.sparse.activations import ThresholdActivation, step_thresholds
from fxprune.sparse.freezing import FreezeReport, freeze, unfreeze
from fxprune.sparse.importance import importance_from
from fxprune.sparse.insertion import Inserted, insert_thresholds
from fxprune.sparse.magnitude import MagnitudePruner
from fxprune.sparse.statistics import ActivationStatistics, LayerStatistics, activation_statistics
from fxprune.sparse.surgery import DynamicSurgery, InverseDecay
from fxprune.sparse.thresholds import Histogram, Quantile, Scheduled
from fxprune.sparse.weight_mask import WeightMask, squash_masks

__all__ = [
    "ActivationStatistics",
    "DynamicSurgery",
    "FreezeReport",
    "Histogram",
    "Inserted",
    "InverseDecay",
    "LayerStatistics",
    "MagnitudePruner",
    "Quantile",
    "Scheduled",
    "ThresholdActivation",
    "WeightMask",
    "activation_statistics",
    "freeze",
    "importance_from",
    "insert_thresholds",
    "squash_masks",
    "step_thresholds",
    "unfreeze",
]
