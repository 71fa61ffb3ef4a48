"""Layers that move their connections while they train.

`DynamicSparseConv2d` and `DynamicSparseLinear` have a mask of active connections. In training they count how often the
two ends of each connection are active together; `update` drops the weakest connections and grows others.
"""

from fxprune.criteria.coactivation import CoactivationImportance, coactivation_importance
from fxprune.criteria.connections import coactivation, correlation
from fxprune.sparse.dynamic.layers import DynamicSparseConv2d, DynamicSparseLinear, update_layers
from fxprune.sparse.dynamic.regrow import Update

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
