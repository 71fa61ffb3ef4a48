"""Sparse weights, connections and activations: masked, dynamic and frozen layers around the pass."""

from fxprune.sparse.conversion import from_prune, plain, to_prune
from fxprune.sparse.empty import empty_outputs, shrink
from fxprune.sparse.masked import MaskedConv2d, MaskedLinear
from fxprune.sparse.patterns import banded_mask, block_mask, mask_from_adjacency, mask_from_graph, random_mask
from fxprune.sparse.plot import spy

__all__ = [
    "MaskedConv2d",
    "MaskedLinear",
    "banded_mask",
    "block_mask",
    "empty_outputs",
    "from_prune",
    "mask_from_adjacency",
    "mask_from_graph",
    "plain",
    "random_mask",
    "shrink",
    "spy",
    "to_prune",
]
