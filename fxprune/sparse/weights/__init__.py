"""Pruning of single weights, whatever their channel.

`MagnitudePruner` removes the smallest weights by a schedule, `DynamicSurgery` lets weights come back. Both hold masks
as parametrizations of the layers; `squash_masks` multiplies them in.
"""

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
