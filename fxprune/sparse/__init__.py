"""Sparse weights, connections and activations: masked, dynamic and frozen layers around the pass."""

from fxprune.sparse.convert import densify, sparsify, sparsify_model
from fxprune.sparse.layouts import SparseConv2d, SparseLinear
from fxprune.sparse.semi_structured import SemiStructuredLinear

__all__ = ["SemiStructuredLinear", "SparseConv2d", "SparseLinear", "densify", "sparsify", "sparsify_model"]
