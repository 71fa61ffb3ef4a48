"""Sparse weights, connections and activations: masked, dynamic and frozen layers around the pass."""

from fxprune.sparse.activations import ThresholdActivation, step_thresholds
from fxprune.sparse.coactivation import coactivation, correlation
from fxprune.sparse.coactivation_importance import CoactivationImportance, coactivation_importance
from fxprune.sparse.comparison import BreakEven, Comparison, break_even, compare
from fxprune.sparse.conversion import from_prune, plain, to_prune
from fxprune.sparse.convert import densify, sparsify, sparsify_model
from fxprune.sparse.dynamic import DynamicSparseConv2d, DynamicSparseLinear, update_layers
from fxprune.sparse.empty import empty_outputs, shrink
from fxprune.sparse.freezing import FreezeReport, freeze, unfreeze
from fxprune.sparse.importance import importance_from
from fxprune.sparse.insertion import Inserted, insert_thresholds
from fxprune.sparse.layouts import SparseConv2d, SparseLinear
from fxprune.sparse.magnitude import MagnitudePruner
from fxprune.sparse.masked import MaskedConv2d, MaskedLinear
from fxprune.sparse.patterns import banded_mask, block_mask, mask_from_adjacency, mask_from_graph, random_mask
from fxprune.sparse.plot import spy
from fxprune.sparse.regrow import Update
from fxprune.sparse.semi_structured import SemiStructuredLinear
from fxprune.sparse.statistics import ActivationStatistics, LayerStatistics, activation_statistics
from fxprune.sparse.surgery import DynamicSurgery, InverseDecay
from fxprune.sparse.thresholds import Histogram, Quantile, Scheduled
from fxprune.sparse.weight_mask import WeightMask, squash_masks

__all__ = [
    "ActivationStatistics",
    "BreakEven",
    "CoactivationImportance",
    "Comparison",
    "DynamicSparseConv2d",
    "DynamicSparseLinear",
    "DynamicSurgery",
    "FreezeReport",
    "Histogram",
    "Inserted",
    "InverseDecay",
    "LayerStatistics",
    "MagnitudePruner",
    "MaskedConv2d",
    "MaskedLinear",
    "Quantile",
    "Scheduled",
    "SemiStructuredLinear",
    "SparseConv2d",
    "SparseLinear",
    "ThresholdActivation",
    "Update",
    "WeightMask",
    "activation_statistics",
    "banded_mask",
    "block_mask",
    "break_even",
    "coactivation",
    "coactivation_importance",
    "compare",
    "correlation",
    "densify",
    "empty_outputs",
    "freeze",
    "from_prune",
    "importance_from",
    "insert_thresholds",
    "mask_from_adjacency",
    "mask_from_graph",
    "plain",
    "random_mask",
    "shrink",
    "sparsify",
    "sparsify_model",
    "spy",
    "squash_masks",
    "step_thresholds",
    "to_prune",
    "unfreeze",
    "update_layers",
]
