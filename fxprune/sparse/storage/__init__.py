"""Layers whose weight is stored as a sparse matrix."""

from fxprune.sparse.storage.comparison import BreakEven, Comparison, break_even, compare
from fxprune.sparse.storage.convert import densify, sparsify, sparsify_model
from fxprune.sparse.storage.layouts import SparseConv2d, SparseLinear
from fxprune.sparse.storage.semi_structured import SemiStructuredLinear

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
