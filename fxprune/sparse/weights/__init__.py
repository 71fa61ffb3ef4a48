"""Pruning of single weights instead of channels.

`MagnitudePruner` removes the smallest weights by a schedule, `DynamicSurgery` lets weights come back. Both set
masks as parametrizations of the layers; `squash_masks` writes the zeros into the weights and removes the masks.
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
