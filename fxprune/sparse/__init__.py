"""Sparse weights, connections and activations: masked, dynamic and frozen layers around the pass."""

from fxprune.sparse.activations import ThresholdActivation, step_thresholds
from fxprune.sparse.comparison import BreakEven, Comparison, break_even, compare
from fxprune.sparse.convert import densify, sparsify, sparsify_model
from fxprune.sparse.freezing import FreezeReport, freeze, unfreeze
from fxprune.sparse.importance import importance_from
from fxprune.sparse.insertion import Inserted, insert_thresholds
from fxprune.sparse.layouts import SparseConv2d, SparseLinear
from fxprune.sparse.magnitude import MagnitudePruner
from fxprune.sparse.semi_structured import SemiStructuredLinear
from fxprune.sparse.statistics import ActivationStatistics, LayerStatistics, activation_statistics
from fxprune.sparse.surgery import DynamicSurgery, InverseDecay
from fxprune.sparse.thresholds import Histogram, Quantile, Scheduled
from fxprune.sparse.weight_mask import WeightMask, squash_masks

__all__ = [
    "ActivationStatistics",
    "BreakEven",
    "Comparison",
    "DynamicSurgery",
    "FreezeReport",
    "Histogram",
    "Inserted",
    "InverseDecay",
    "LayerStatistics",
    "MagnitudePruner",
    "Quantile",
    "Scheduled",
    "SemiStructuredLinear",
    "SparseConv2d",
    "SparseLinear",
    "ThresholdActivation",
    "WeightMask",
    "activation_statistics",
    "break_even",
    "compare",
    "densify",
    "freeze",
    "importance_from",
    "insert_thresholds",
    "sparsify",
    "sparsify_model",
    "squash_masks",
    "step_thresholds",
    "unfreeze",
]
