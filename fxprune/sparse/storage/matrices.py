"""Sparse matrices as dense component tensors: their names, and conversions to and from torch's sparse tensors."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENTS = {"csr": ("crow_indices", "col_indices"), "coo": ("indices",), "bsr": ("crow_indices", "col_indices")}
"""Layout -> names of the index tensors, as in torch (https://docs.pytorch.org/docs/stable/sparse.html)."""

_TORCH = {"csr": torch.sparse_csr, "bsr": torch.sparse_bsr}

Indices = Sequence[Tensor]


@dataclass(frozen=True)
class Spec:
    """The format of a matrix: layout "csr", "coo" or "bsr", shape [rows, columns], and for "bsr" the blocksize."""

    layout: str
    shape: tuple[int, int]
    blocksize: tuple[int, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the index tensors, in the order in which functions take them."""
        return COMPONENTS[self.layout]

    def index_dtype(self, stored: int) -> torch.dtype:
        """int32 if it can count this number of stored values; "coo" needs int64 in torch."""
        fits = max(stored, *self.shape) <= torch.iinfo(torch.int32).max
        return torch.int32 if fits and self.layout != "coo" else torch.int64

    def matrix(self, indices: Indices, values: Tensor, *, check: bool = False) -> Tensor:
        """Returns torch's sparse tensor, without a copy. check: raise RuntimeError if components are wrong."""
        if self.layout == "coo":
            return torch.sparse_coo_tensor(indices[0], values, self.shape, is_coalesced=True, check_invariants=check)
        layout = _TORCH[self.layout]
        crow, columns = indices
        return torch.sparse_compressed_tensor(crow, columns, values, self.shape, layout=layout, check_invariants=check)

    def components(self, dense: Tensor) -> tuple[Indices, Tensor]:
        """Returns indices and values of the elements (for "bsr": blocks) of a dense matrix that are not zero."""
        if self.layout == "coo":
            sparse = dense.to_sparse().coalesce()
            return (sparse.indices(),), sparse.values()
        sparse = dense.to_sparse_csr() if self.layout == "csr" else dense.to_sparse_bsr(self.blocksize or ())
        dtype = self.index_dtype(sparse.values().shape[0])
        return (sparse.crow_indices().to(dtype), sparse.col_indices().to(dtype)), sparse.values()

    def rows_and_columns(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Returns row and column of every stored value; for "bsr" those of every block, counted in blocks."""
        if self.layout == "coo":
            return indices[0][0], indices[0][1]
        crow, columns = indices
        return torch.repeat_interleave(crow.diff()).to(columns.dtype), columns

    def shifted(self, indices: Indices, groups: int, by: int) -> Indices:
        """Returns the indices with the columns of group g shifted by g * `by`. The rows are `groups` equal parts.

        The weight of a grouped convolution is [o, k], where k counts the columns of one group. As a matrix over the
        whole unfolded input it is block-diagonal, [o, groups * k]: with by=k the columns of group g move to its block,
        and with by=-k they move back.
        """
        if groups == 1:
            return indices
        height, width = self.blocksize or (1, 1)
        rows, columns = self.rows_and_columns(indices)
        columns = columns + rows // (self.shape[0] // height // groups) * (by // width)
        return (torch.stack((rows, columns)),) if self.layout == "coo" else (indices[0], columns)


def stored_share(stored: int, shape: tuple[int, ...]) -> float:
    """Returns stored values over all elements of the shape; 0 for a shape without elements."""
    return stored / size if (size := math.prod(shape)) else 0.0


@contextlib.contextmanager
def no_beta_warning() -> Iterator[None]:
    """Hides torch's warning about the first tensor of a compressed layout in a process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta", category=UserWarning)
        yield
