"""A sparse matrix held as plain dense tensors, its products, and their gradients with respect to what is stored.

torch's own gradient of a sparse matrix is a dense matrix, and for blocks there is none on CPU. Here the gradient is
taken at the stored places alone, in any layout, as often as it is asked for.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

COMPONENTS = {"csr": ("crow_indices", "col_indices"), "coo": ("indices",), "bsr": ("crow_indices", "col_indices")}
"""By layout: the names of the index tensors, torch's own (https://docs.pytorch.org/docs/stable/sparse.html)."""

_TORCH = {"csr": torch.sparse_csr, "bsr": torch.sparse_bsr}
_HALF = (torch.float16, torch.bfloat16)
_GATHERED = 1 << 20
"""Elements that the gradient of blocks gathers at a time."""

Indices = tuple[Tensor, ...]


@dataclass(frozen=True)
class Spec:
    """What components mean: layout "csr", "coo" or "bsr", shape [rows, columns], and the blocksize of a "bsr"."""

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

    def moved(self, indices: Indices, groups: int, sign: int) -> Indices:
        """Columns moved by `sign` times those of the groups before theirs: [rows, k] to the block diagonal or back.

        The rows are `groups` equal stretches. A convolution's weight [o, k] with k columns of its own group is the
        block-diagonal matrix [o, groups * k] over the unfolded input: the same values, in other columns.
        """
        if groups == 1:
            return indices
        unit = self.blocksize or (1, 1)
        columns_a_group = self.shape[1] // (groups if sign < 0 else 1) // unit[1]
        rows, columns = self.places(indices)
        columns = columns + sign * (rows // (self.shape[0] // unit[0] // groups)) * columns_a_group
        return (torch.stack((rows, columns)),) if self.layout == "coo" else (indices[0], columns)


def product(values: Tensor, x: Tensor, spec: Spec, indices: Indices) -> Tensor:
    """y[r, n] = sum_c w[r, c] * x[c, n], w the matrix [rows, columns] of the components.

    x: [columns, n], of the type of `values`. Differentiable, twice and more, in `values` and `x`. Values of half
    precision are multiplied and summed in float32 on CPU: torch's kernels there lack these types or round every sum.
    """
    return _product(values, x, spec, False, *indices)


def refusal(spec: Spec, dtype: torch.dtype, device: torch.device) -> str:
    """Why this build of torch cannot multiply in a layout on a device; "" if it can. Tried on a matrix of one value."""
    height, width = spec.blocksize or (1, 1)
    small = Spec(spec.layout, (height, width), spec.blocksize)
    ones = torch.ones(height, width, dtype=dtype, device=device)
    try:
        with beta(), torch.no_grad():
            indices, values = small.components(ones)
            product(values, ones.new_ones(width, 1), small, indices)
    except (RuntimeError, NotImplementedError) as error:
        return str(error).partition("\n")[0]
    return ""


@contextlib.contextmanager
def beta() -> Iterator[None]:
    """Without the warning that torch gives when a process makes its first tensor of a compressed layout."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse .* tensor support is in beta", category=UserWarning)
        yield


class _Product(Function):
    """x [columns, n] -> w @ x [rows, n], or across: x [rows, n] -> w.T @ x [columns, n]."""

    @staticmethod
    def forward(values: Tensor, x: Tensor, spec: Spec, across: bool, *indices: Tensor) -> Tensor:
        return _multiply(values, x, spec, across, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        values, x, ctx.spec, ctx.across, *indices = inputs
        ctx.save_for_backward(values, x, *indices)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        values, x, *indices = ctx.saved_tensors
        by_values = by_x = None
        if ctx.needs_input_grad[0]:
            rows, columns = (x, grad) if ctx.across else (grad, x)
            by_values = _sampled(rows, columns, ctx.spec, *indices)
        if ctx.needs_input_grad[1]:
            by_x = _product(values, grad, ctx.spec, not ctx.across, *indices)
        return by_values, by_x, None, None, *(None for _ in indices)


class _Sampled(Function):
    """v[k] = sum_n a[r_k, n] * b[c_k, n] over the stored places (r_k, c_k): a @ b.T, where w stores something."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, spec: Spec, *indices: Tensor) -> Tensor:
        return _sample(a, b, spec, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        a, b, ctx.spec, *indices = inputs
        ctx.save_for_backward(a, b, *indices)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        a, b, *indices = ctx.saved_tensors
        by_a = _product(grad, b, ctx.spec, False, *indices) if ctx.needs_input_grad[0] else None
        by_b = _product(grad, a, ctx.spec, True, *indices) if ctx.needs_input_grad[1] else None
        return by_a, by_b, None, *(None for _ in indices)


_product: Callable[..., Tensor] = _Product.apply
_sampled: Callable[..., Tensor] = _Sampled.apply


def _multiply(values: Tensor, x: Tensor, spec: Spec, across: bool, indices: Indices) -> Tensor:
    if values.dtype in _HALF and values.device.type == "cpu":
        return _multiply(values.float(), x.float(), spec, across, indices).to(values.dtype)
    if not values.shape[0] or not x.shape[1]:
        return x.new_zeros(spec.shape[1 if across else 0], x.shape[1])
    if across and spec.layout == "bsr":  # torch has no product of transposed blocks on CPU
        spec, indices, values = _transposed(spec, indices, values)
        across = False
    matrix = spec.matrix(indices, values)
    x = x.contiguous() if spec.layout == "coo" else x  # a "coo" takes 20 times as long on strided columns
    return (matrix.t() if across else matrix) @ x


def _transposed(spec: Spec, indices: Indices, values: Tensor) -> tuple[Spec, Indices, Tensor]:
    """The components of the transposed matrix of blocks."""
    rows, columns = spec.places(indices)
    height, width = spec.blocksize or (1, 1)
    order = torch.argsort(columns, stable=True)
    ends = torch.arange(spec.shape[1] // width + 1, dtype=columns.dtype, device=columns.device)
    crow = torch.searchsorted(columns[order], ends).to(columns.dtype)
    turned = Spec("bsr", (spec.shape[1], spec.shape[0]), (width, height))
    return turned, (crow, rows[order]), values[order].mT.contiguous()


def _sample(a: Tensor, b: Tensor, spec: Spec, indices: Indices) -> Tensor:
    if a.dtype in _HALF:
        return _sample(a.float(), b.float(), spec, indices).to(a.dtype)
    rows, columns = spec.places(indices)
    if spec.layout == "bsr":
        return _sample_blocks(a, b, spec, rows, columns)
    if not len(rows) or not a.shape[1]:
        return a.new_zeros(len(rows))
    if spec.layout == "coo":
        ends = torch.arange(spec.shape[0] + 1, dtype=rows.dtype, device=rows.device)
        indices = (torch.searchsorted(rows.contiguous(), ends), columns)
    matrix = Spec("csr", spec.shape).matrix(indices, a.new_zeros(len(rows)))
    sampled: Tensor = torch.sparse.sampled_addmm(matrix, a, b.t(), beta=0.0)
    return sampled.values()


def _sample_blocks(a: Tensor, b: Tensor, spec: Spec, rows: Tensor, columns: Tensor) -> Tensor:
    """The same for whole blocks, some at a time, so that what is gathered stays small."""
    height, width = spec.blocksize or (1, 1)
    result = a.new_empty(len(rows), height, width)
    tall, wide = a.reshape(-1, height, a.shape[1]), b.reshape(-1, width, b.shape[1])
    chunk = max(1, _GATHERED // max(1, a.shape[1] * (height + width)))
    for first in range(0, len(rows), chunk):
        part = slice(first, first + chunk)
        result[part] = tall.index_select(0, rows[part]) @ wide.index_select(0, columns[part]).mT
    return result


def stored_share(stored: int, shape: tuple[int, ...]) -> float:
    """Stored values over all elements, blocks with everything in them; 0 of nothing."""
    return stored / size if (size := math.prod(shape)) else 0.0
