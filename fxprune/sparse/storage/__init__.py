"""Layers whose weight is stored as a sparse matrix.

`sparsify` makes such a layer from a dense one, in one of torch's sparse layouts; `densify` makes the dense layer again.
`compare` counts bytes and measures latency, `break_even` looks for the density below which a sparse layer is faster.
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
