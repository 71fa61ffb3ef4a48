"""Pruning of single weights."""

from fxprune.sparse.weights.magnitude import MagnitudePruner
from fxprune.sparse.weights.mask import WeightMask, squash_masks
from fxprune.sparse.weights.surgery import DynamicSurgery, InverseDecay

__all__ = [
    "DynamicSurgery",
    "InverseDecay",
    "MagnitudePruner",
    "WeightMask",
    "squash_masks",
]
