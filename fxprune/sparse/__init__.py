"""Sparse weights, connections and activations: masked, dynamic and frozen layers around the pass."""

from fxprune.sparse.coactivation import coactivation, correlation
from fxprune.sparse.coactivation_importance import CoactivationImportance, coactivation_importance
from fxprune.sparse.dynamic import DynamicSparseConv2d, DynamicSparseLinear, update_layers
from fxprune.sparse.regrow import Update

__all__ = [
    "CoactivationImportance",
    "DynamicSparseConv2d",
    "DynamicSparseLinear",
    "Update",
    "coactivation",
    "coactivation_importance",
    "correlation",
    "update_layers",
]
