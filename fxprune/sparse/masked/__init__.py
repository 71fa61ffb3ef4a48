"""Layers whose connections are chosen by a mask.

`MaskedConv2d` and `MaskedLinear` use only the connections that their mask allows; masks come from a pattern or a graph.
`plain` copies them into layers of torch with zeros, `shrink` removes the channels that the masks have cut off.
"""

from fxprune.sparse.masked.convert import from_prune, plain, to_prune
from fxprune.sparse.masked.layers import MaskedConv2d, MaskedLinear
from fxprune.sparse.masked.patterns import banded_mask, block_mask, mask_from_adjacency, mask_from_graph, random_mask
from fxprune.sparse.masked.pictures import spy
from fxprune.sparse.masked.removal import empty_outputs, shrink

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
