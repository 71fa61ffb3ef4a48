"""Products with sparse matrices, as two operators whose gradients are sparse too.

In torch, the gradient of a sparse matrix is a dense matrix, and for blocks there is none on CPU. Here the gradient is
computed for stored values only, in every layout. The gradient of each operator consists of calls of the same two
operators, so gradients of gradients work as well. Operators also run on fake tensors and in exported graphs, and their
FLOPs are counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fxprune.ops.aspects import multiplies
from fxprune.sparse.storage.matrices import Indices, Spec, no_beta_warning

_HALF = (torch.float16, torch.bfloat16)
_GATHERED = 1 << 20
"""The number of elements that are gathered at a time when blocks are multiplied in batches."""

_MATRIX = "Tensor first, Tensor? second, str layout, int[] shape, int[]? blocksize"
_LIBRARY: Any = torch.library.Library("fxprune", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"sparse_product(Tensor values, Tensor x, {_MATRIX}, bool across) -> Tensor")
_LIBRARY.define(f"sparse_sampled(Tensor a, Tensor b, {_MATRIX}) -> Tensor")


def product(
    values: Tensor, x: Tensor, indices: Indices, layout: str, shape: tuple[int, int], blocksize: tuple[int, int] | None
) -> Tensor:
    """y[r, n] = sum_c w[r, c] * x[c, n], where w [rows, columns] is the matrix of the components; see `matrices.Spec`.

    values, indices, layout, shape, blocksize: the components of w. x: [columns, n], in the type of `values`.
    Differentiable any number of times in `values` and `x`. Half precision is computed in float32 on CPU, because
    torch's kernels there lack these types or round after every addition.
    """
    return _product(values, x, *_two(indices), layout, shape, blocksize, False)


def refusal(spec: Spec, dtype: torch.dtype, device: torch.device) -> str:
    """Returns why torch cannot multiply in this layout on this device, "" if it can. It tries a very small matrix."""
    height, width = spec.blocksize or (1, 1)
    small = Spec(spec.layout, (height, width), spec.blocksize)
    ones = torch.ones(height, width, dtype=dtype, device=device)
    try:
        with no_beta_warning(), torch.no_grad():
            indices, values = small.components(ones)
            product(values, ones.new_ones(width, 1), indices, small.layout, small.shape, small.blocksize)
    except (RuntimeError, NotImplementedError) as error:
        return str(error).partition("\n")[0]
    return ""


def _product(values: Tensor, x: Tensor, *matrix: Any) -> Tensor:
    """Returns w @ x [rows, n], or w.T @ x [columns, n] where the last argument, `across`, is True."""
    result: Tensor = torch.ops.fxprune.sparse_product(values, x, *matrix)
    return result


def _sampled(a: Tensor, b: Tensor, *matrix: Any) -> Tensor:
    """v[k] = sum_n a[r_k, n] * b[c_k, n]: a @ b.T at (r_k, c_k), the positions of the values that w stores."""
    result: Tensor = torch.ops.fxprune.sparse_sampled(a, b, *matrix)
    return result


def _two(indices: Indices) -> tuple[Tensor, Tensor | None]:
    """Returns both index tensors, None for a missing one: an operator that takes a list costs more per call."""
    return indices[0], indices[1] if len(indices) > 1 else None


def _indices(first: Tensor, second: Tensor | None) -> Indices:
    return (first,) if second is None else (first, second)


def _spec(layout: str, shape: Sequence[int], blocksize: Sequence[int] | None) -> Spec:
    block = None if blocksize is None else (blocksize[0], blocksize[1])
    return Spec(layout, (shape[0], shape[1]), block)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, layout, shape, blocksize = inputs[:7]
    ctx.matrix, ctx.across = (layout, shape, blocksize), inputs[-1]
    ctx.save_for_backward(*tensors)


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    values, x, *indices = ctx.saved_tensors
    by_values = by_x = None
    if ctx.needs_input_grad[0]:
        a, b = (x, grad) if ctx.across else (grad, x)
        by_values = _sampled(a, b, *indices, *ctx.matrix)
    if ctx.needs_input_grad[1]:
        by_x = _product(values, grad, *indices, *ctx.matrix, not ctx.across)
    return by_values, by_x, *[None] * 6


def _sampled_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    a, b, *indices = ctx.saved_tensors
    by_a = _product(grad, b, *indices, *ctx.matrix, False) if ctx.needs_input_grad[0] else None
    by_b = _product(grad, a, *indices, *ctx.matrix, True) if ctx.needs_input_grad[1] else None
    return by_a, by_b, *[None] * 5


def _product_kernel(values: Tensor, x: Tensor, first: Tensor, second: Any, *matrix: Any) -> Tensor:
    *described, across = matrix
    return _multiply(values, x, _spec(*described), across, _indices(first, second))


def _sampled_kernel(a: Tensor, b: Tensor, first: Tensor, second: Any, *matrix: Any) -> Tensor:
    return _sample(a, b, _spec(*matrix), _indices(first, second))


def _product_fake(values: Tensor, x: Tensor, first: Tensor, second: Any, *matrix: Any) -> Tensor:
    _, shape, _, across = matrix
    return x.new_empty(shape[1 if across else 0], x.shape[1])


def _sampled_fake(a: Tensor, b: Tensor, first: Tensor, second: Any, *matrix: Any) -> Tensor:
    columns = first if second is None else second
    return a.new_empty(columns.shape[-1], *(matrix[2] or ()))


_LIBRARY.impl("sparse_product", _product_kernel, "CompositeExplicitAutograd")
_LIBRARY.impl("sparse_sampled", _sampled_kernel, "CompositeExplicitAutograd")
torch.library.register_fake("fxprune::sparse_product", _product_fake, lib=_LIBRARY)
torch.library.register_fake("fxprune::sparse_sampled", _sampled_fake, lib=_LIBRARY)
torch.library.register_autograd("fxprune::sparse_product", _product_backward, setup_context=_save, lib=_LIBRARY)
torch.library.register_autograd("fxprune::sparse_sampled", _sampled_backward, setup_context=_save, lib=_LIBRARY)


@multiplies(torch.ops.fxprune.sparse_product)
def _product_macs(values: Any, x: Any) -> list[Any]:
    """Counts one multiply-add for every stored value and column of x."""
    return [(*values, x[1])]


@register_flop_formula([torch.ops.fxprune.sparse_product])
def _product_flops(values_shape: Any, x_shape: Any, *_: Any, **__: Any) -> int:
    """Returns 2 FLOPs, one multiply-add, for every stored value and column of x."""
    return 2 * math.prod((*values_shape, int(x_shape[1])))


@register_flop_formula([torch.ops.fxprune.sparse_sampled])
def _sampled_flops(a_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * math.prod((*out_shape, int(a_shape[1])))


def _multiply(values: Tensor, x: Tensor, spec: Spec, across: bool, indices: Indices) -> Tensor:
    if values.dtype in _HALF and values.device.type == "cpu":
        return _multiply(values.float(), x.float(), spec, across, indices).to(values.dtype)
    if not values.shape[0] or not x.shape[1]:
        return x.new_zeros(spec.shape[1 if across else 0], x.shape[1])
    height, width = spec.blocksize or (1, 1)
    if spec.layout == "bsr" and (across or height != width):  # torch calls MKL here, which has neither
        return _multiply_blocks(values, x, spec, across, indices)
    matrix = spec.matrix(indices, values)
    x = x.contiguous() if spec.layout == "coo" else x  # "coo" takes 20 times as long on strided columns
    return (matrix.t() if across else matrix) @ x


def _multiply_blocks(values: Tensor, x: Tensor, spec: Spec, across: bool, indices: Indices) -> Tensor:
    """Multiplies block by block, in batches, where torch has no kernel; as fast as torch's kernels for large blocks."""
    into, source = spec.rows_and_columns(indices)
    into, source, values = (source, into, values.mT) if across else (into, source, values)
    height, width = values.shape[1:]
    tall = x.new_zeros(spec.shape[1 if across else 0] // height, height, x.shape[1])
    wide = x.reshape(-1, width, x.shape[1])
    for part in _parts(len(into), x.shape[1] * (height + width)):
        tall.index_add_(0, into[part], values[part] @ wide.index_select(0, source[part]))
    return tall.view(-1, x.shape[1])


def _sample(a: Tensor, b: Tensor, spec: Spec, indices: Indices) -> Tensor:
    if a.dtype in _HALF:
        return _sample(a.float(), b.float(), spec, indices).to(a.dtype)
    rows, columns = spec.rows_and_columns(indices)
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
    """Computes `_sample` for whole blocks."""
    height, width = spec.blocksize or (1, 1)
    result = a.new_empty(len(rows), height, width)
    tall, wide = a.reshape(-1, height, a.shape[1]), b.reshape(-1, width, b.shape[1])
    for part in _parts(len(rows), a.shape[1] * (height + width)):
        result[part] = tall.index_select(0, rows[part]) @ wide.index_select(0, columns[part]).mT
    return result


def _parts(blocks: int, elements: int) -> Iterator[slice]:
    """Yields slices of the blocks that gather `_GATHERED` elements or fewer each; one block gathers `elements`."""
    step = max(1, _GATHERED // max(1, elements))
    for first in range(0, blocks, step):
        yield slice(first, first + step)
