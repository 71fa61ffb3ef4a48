"""Layers that replace some of their connections during training.

`DynamicSparseConv2d` and `DynamicSparseLinear` have a mask of active connections. In training mode they count how often
input and output of each connection are active together; `update` prunes the weakest connections and activates others.
"""

from fxprune.criteria.coactivation import CoactivationImportance, coactivation_importance
from fxprune.criteria.connections import coactivation, correlation
from fxprune.sparse.dynamic.layers import DynamicSparseConv2d, DynamicSparseLinear, update_layers
from fxprune.sparse.dynamic.selection import Update

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
