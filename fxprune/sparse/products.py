"""Products of sparse matrices as two operators, and their gradients with respect to what is stored.

torch's own gradient of a sparse matrix is a dense matrix, and for blocks there is none on CPU. Here the gradient is
taken at the stored places alone, in any layout, as often as it is asked for: each operator's gradient is the other one
and itself. As operators they also run on fake tensors, in exported graphs, and count their FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fxprune.sparse.matrices import Indices, Spec, beta

_HALF = (torch.float16, torch.bfloat16)
_GATHERED = 1 << 20
"""Elements that the gradient of blocks gathers at a time."""

_MATRIX = "Tensor[] indices, str layout, int[] shape, int[]? blocksize"
_LIBRARY: Any = torch.library.Library("fxprune", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"sparse_product(Tensor values, Tensor x, {_MATRIX}, bool across) -> Tensor")
_LIBRARY.define(f"sparse_sampled(Tensor a, Tensor b, {_MATRIX}) -> Tensor")


def product(values: Tensor, x: Tensor, spec: Spec, indices: Indices) -> Tensor:
    """y[r, n] = sum_c w[r, c] * x[c, n], w the matrix [rows, columns] of the components.

    x: [columns, n], of the type of `values`. Differentiable, twice and more, in `values` and `x`. Values of half
    precision are multiplied and summed in float32 on CPU: torch's kernels there lack these types or round every sum.
    """
    return _product(values, x, indices, spec.layout, spec.shape, spec.blocksize, False)


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


def _product(values: Tensor, x: Tensor, *matrix: Any) -> Tensor:
    """x [columns, n] -> w @ x [rows, n], or across: x [rows, n] -> w.T @ x [columns, n]."""
    result: Tensor = torch.ops.fxprune.sparse_product(values, x, *matrix)
    return result


def _sampled(a: Tensor, b: Tensor, *matrix: Any) -> Tensor:
    """v[k] = sum_n a[r_k, n] * b[c_k, n] over the stored places (r_k, c_k): a @ b.T, where w stores something."""
    result: Tensor = torch.ops.fxprune.sparse_sampled(a, b, *matrix)
    return result


def _spec(layout: str, shape: Sequence[int], blocksize: Sequence[int] | None) -> Spec:
    block = None if blocksize is None else (blocksize[0], blocksize[1])
    return Spec(layout, (shape[0], shape[1]), block)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, indices, *ctx.matrix = inputs
    ctx.save_for_backward(first, second, *indices)


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    values, x, *indices = ctx.saved_tensors
    *matrix, across = ctx.matrix
    by_values = by_x = None
    if ctx.needs_input_grad[0]:
        a, b = (x, grad) if across else (grad, x)
        by_values = _sampled(a, b, indices, *matrix)
    if ctx.needs_input_grad[1]:
        by_x = _product(values, grad, indices, *matrix, not across)
    return by_values, by_x, *[None] * 5


def _sampled_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    a, b, *indices = ctx.saved_tensors
    by_a = _product(grad, b, indices, *ctx.matrix, False) if ctx.needs_input_grad[0] else None
    by_b = _product(grad, a, indices, *ctx.matrix, True) if ctx.needs_input_grad[1] else None
    return by_a, by_b, *[None] * 4


def _product_kernel(
    values: Tensor, x: Tensor, indices: Indices, layout: str, shape: Any, blocksize: Any, across: bool
) -> Tensor:
    return _multiply(values, x, _spec(layout, shape, blocksize), across, indices)


def _sampled_kernel(a: Tensor, b: Tensor, indices: Indices, layout: str, shape: Any, blocksize: Any) -> Tensor:
    return _sample(a, b, _spec(layout, shape, blocksize), indices)


def _product_fake(
    values: Tensor, x: Tensor, indices: Indices, layout: str, shape: Any, blocksize: Any, across: bool
) -> Tensor:
    return x.new_empty(shape[1 if across else 0], x.shape[1])


def _sampled_fake(a: Tensor, b: Tensor, indices: Indices, layout: str, shape: Any, blocksize: Any) -> Tensor:
    return a.new_empty(indices[-1].shape[-1], *(blocksize or ()))


_LIBRARY.impl("sparse_product", _product_kernel, "CompositeExplicitAutograd")
_LIBRARY.impl("sparse_sampled", _sampled_kernel, "CompositeExplicitAutograd")
torch.library.register_fake("fxprune::sparse_product", _product_fake, lib=_LIBRARY)
torch.library.register_fake("fxprune::sparse_sampled", _sampled_fake, lib=_LIBRARY)
torch.library.register_autograd("fxprune::sparse_product", _product_backward, setup_context=_save, lib=_LIBRARY)
torch.library.register_autograd("fxprune::sparse_sampled", _sampled_backward, setup_context=_save, lib=_LIBRARY)


@register_flop_formula([torch.ops.fxprune.sparse_product])
def _product_flops(values_shape: Any, x_shape: Any, *_: Any, **__: Any) -> int:
    """One multiply-add, 2 FLOPs, for every stored value and column of x."""
    return 2 * math.prod((*values_shape, int(x_shape[1])))


@register_flop_formula([torch.ops.fxprune.sparse_sampled])
def _sampled_flops(a_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * math.prod((*out_shape, int(a_shape[1])))


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
