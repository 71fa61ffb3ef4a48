"""A sparse matrix as plain dense tensors: what they are called, what they mean, and where their values stand."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENTS = {"csr": ("crow_indices", "col_indices"), "coo": ("indices",), "bsr": ("crow_indices", "col_indices")}
"""By layout: the names of the index tensors, torch's own (https://docs.pytorch.org/docs/stable/sparse.html)."""

_TORCH = {"csr": torch.sparse_csr, "bsr": torch.sparse_bsr}

Indices = Sequence[Tensor]


@dataclass(frozen=True)
class Spec:
    """The meaning of components: layout "csr", "coo" or "bsr", shape [rows, columns], and the blocksize of a "bsr"."""

    layout: str
    shape: tuple[int, int]
    blocksize: tuple[int, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The index tensors of the layout, in the order in which they are passed."""
        return COMPONENTS[self.layout]

    def index_dtype(self, stored: int) -> torch.dtype:
        """int32 where it can count so many stored values; torch takes a "coo" in int64 alone."""
        fits = max(stored, *self.shape) <= torch.iinfo(torch.int32).max
        return torch.int32 if fits and self.layout != "coo" else torch.int64

    def matrix(self, indices: Indices, values: Tensor, *, check: bool = False) -> Tensor:
        """The torch sparse tensor that shares these components; `check` raises RuntimeError if they are wrong."""
        if self.layout == "coo":
            return torch.sparse_coo_tensor(indices[0], values, self.shape, is_coalesced=True, check_invariants=check)
        layout = _TORCH[self.layout]
        crow, columns = indices
        return torch.sparse_compressed_tensor(crow, columns, values, self.shape, layout=layout, check_invariants=check)

    def components(self, dense: Tensor) -> tuple[Indices, Tensor]:
        """The components of what is not zero in a dense matrix of this shape; of a "bsr", the blocks that are not."""
        if self.layout == "coo":
            sparse = dense.to_sparse().coalesce()
            return (sparse.indices(),), sparse.values()
        sparse = dense.to_sparse_csr() if self.layout == "csr" else dense.to_sparse_bsr(self.blocksize or ())
        dtype = self.index_dtype(sparse.values().shape[0])
        return (sparse.crow_indices().to(dtype), sparse.col_indices().to(dtype)), sparse.values()

    def places(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Row and column of every stored value, or of every block in counts of blocks."""
        if self.layout == "coo":
            return indices[0][0], indices[0][1]
        crow, columns = indices
        return torch.repeat_interleave(crow.diff()).to(columns.dtype), columns

    def moved(self, indices: Indices, groups: int, by: int) -> Indices:
        """The indices, the columns of group g moved by g * `by`, where the rows are `groups` equal stretches.

        A grouped convolution's weight [o, k], k the columns of one group, is the block-diagonal matrix [o, groups * k]
        over the unfolded input: the same values, the columns of each group moved by those of the groups before it.
        """
        if groups == 1:
            return indices
        height, width = self.blocksize or (1, 1)
        rows, columns = self.places(indices)
        columns = columns + rows // (self.shape[0] // height // groups) * (by // width)
        return (torch.stack((rows, columns)),) if self.layout == "coo" else (indices[0], columns)


def stored_share(stored: int, shape: tuple[int, ...]) -> float:
    """Stored values over all elements, blocks with everything in them; 0 of nothing."""
    return stored / size if (size := math.prod(shape)) else 0.0


@contextlib.contextmanager
def beta() -> Iterator[None]:
    """Without the warning that torch gives when a process makes its first tensor of a compressed layout."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta", category=UserWarning)
        yield
