"""Sparse weights, connections and activations: masked, dynamic and frozen layers around the pass."""

from fxprune.sparse.comparison import BreakEven, Comparison, break_even, compare
from fxprune.sparse.convert import densify, sparsify, sparsify_model
from fxprune.sparse.layouts import SparseConv2d, SparseLinear
from fxprune.sparse.semi_structured import SemiStructuredLinear

__all__ = [
    "BreakEven",
    "Comparison",
    "SemiStructuredLinear",
    "SparseConv2d",
    "SparseLinear",
    "break_even",
    "compare",
    "densify",
    "sparsify",
    "sparsify_model",
]
