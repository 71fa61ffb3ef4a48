"""Sparse weights, connections and activations: masked, dynamic and frozen layers around the pass."""

from fxprune.sparse.magnitude import MagnitudePruner
from fxprune.sparse.surgery import DynamicSurgery, InverseDecay
from fxprune.sparse.weight_mask import WeightMask, squash_masks

__all__ = ["DynamicSurgery", "InverseDecay", "MagnitudePruner", "WeightMask", "squash_masks"]
