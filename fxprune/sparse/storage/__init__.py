"""Layers whose weight is stored as a sparse matrix.

`sparsify` makes such a layer of a dense one, in a layout of torch, and `densify` the dense one again. `compare` and
`break_even` measure bytes and latency.
"""

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
