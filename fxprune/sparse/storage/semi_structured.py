"""A linear layer with at most two of every four weights, in the packed form of torch; for tensor cores of CUDA only."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensorCUTLASS as Packed

from fxprune.arguments import checks_arguments
from fxprune.errors import PlanError

ROWS, COLUMNS = 32, 64
"""Rows and columns must be multiples of these (`_DTYPE_SHAPE_CONSTRAINTS` of `Packed`, for half precision)."""


class SemiStructuredLinear(nn.Module):
    """y = x @ w.T + b, where every four weights in a row of w [out_features, in_features] have at most two values.

    packed: buffer [out_features, in_features / 2], the values. meta: int16 buffer, the positions of the values. Both
    are in the format of `torch.sparse.SparseSemiStructuredTensorCUTLASS` (Mishra et al. 2021, "Accelerating Sparse Deep
    Neural Networks"; https://docs.pytorch.org/docs/stable/sparse.html#sparse-semi-structured-tensors). The layer is for
    inference on CUDA: buffers have no gradient. `load_state_dict` takes tensors of the same shapes.
    """

    packed: Tensor
    meta: Tensor
    bias: nn.Parameter | None
    layout = "semi_structured"

    @checks_arguments()
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass as pack

        self.out_features, self.in_features = weight.shape
        packed, meta = pack(weight.contiguous())  # type: ignore[no-untyped-call]
        self.register_buffer("packed", packed)
        self.register_buffer("meta", meta)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        with warnings.catch_warnings():  # torch warns once per process that this is a prototype
            warnings.filterwarnings("ignore", message=".*prototype stage", category=UserWarning)
            self._weight()

    @property
    def density(self) -> float:
        """Stored values over elements: always 0.5."""
        return 0.5

    def forward(self, input: Tensor) -> Tensor:
        """Computes `nn.Linear.forward`."""
        return F.linear(input.contiguous(), self._weight(), self.bias)

    def dense_weight(self) -> Tensor:
        """The weight as a new dense tensor."""
        dense: Tensor = self._weight().to_dense()
        return dense

    def to_dense(self) -> nn.Linear:
        """An `nn.Linear` with the same weight, zeros where nothing is stored."""
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        dense.weight = nn.Parameter(self.dense_weight())
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone())
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """The text of `nn.Linear`, and the layout."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, layout={self.layout}"

    def _weight(self) -> Any:
        shape = torch.Size((self.out_features, self.in_features))
        return Packed(shape, self.packed, self.meta, None, None, None)


def check_semi_structured(weight: Tensor, at: str) -> None:
    """Raises `PlanError` unless a weight [rows, columns] has the shape, pattern, type and device of the packed form."""
    rows, columns = weight.shape
    where = f"{at}, weight {[rows, columns]} {weight.dtype} on {weight.device}"
    if rows % ROWS or columns % COLUMNS:
        raise PlanError(
            "the weight is of no shape for layout semi_structured",
            at=where,
            why=f"torch's kernel takes multiples of {ROWS} rows and of {COLUMNS} columns",
            do='take layout "csr", or leave the layer out',
        )
    most = int((weight != 0).reshape(rows, -1, 4).sum(-1).max())
    if most > 2:
        raise PlanError(
            "the weight does not have the pattern of layout semi_structured",
            at=where,
            why=f"of every four weights along a row at most two may stay, and {most} do somewhere",
            do="prune to 2:4 first: keep the two largest of every four along in_features",
        )
    if weight.dtype not in (torch.float16, torch.bfloat16):
        raise PlanError(
            f"layout semi_structured does not take {weight.dtype}",
            at=where,
            why="torch has the pattern of two in four for float16 and bfloat16 alone",
            do="convert the model first, for example with `model.half()`",
        )
    if weight.device.type != "cuda":
        raise PlanError(
            "layout semi_structured needs CUDA",
            at=where,
            why="the pattern pays on tensor cores alone, and torch has no kernel for it on any other device",
            do='move the model to a GPU first, or take layout "csr"',
        )


def check_product(layer: SemiStructuredLinear, weight: Tensor, at: str) -> None:
    """Raises `PlanError` unless the layer computes what the dense one does: not every GPU and build has the kernel."""
    x = torch.linspace(-1, 1, 8 * layer.in_features, dtype=torch.float32, device=weight.device).view(8, -1)
    x = x.to(weight.dtype)
    try:
        with torch.no_grad():
            y, expected = layer(x), F.linear(x, weight, layer.bias)
    except (RuntimeError, NotImplementedError) as error:
        why = str(error).partition("\n")[0]
        raise PlanError(
            "this GPU or build of torch has no product of layout semi_structured",
            at=at,
            why=why,
            do="take another layout, such as csr",
        ) from error
    difference = float((y.float() - expected.float()).norm() / expected.float().norm().clamp_min(1e-12))
    if not difference < 0.02:
        why = f"it is off the dense product by {difference:.1e} of its norm, in {weight.dtype}"
        raise PlanError(
            "the product of layout semi_structured is wrong on this GPU",
            at=at,
            why=why,
            do="take another layout, such as csr",
        )
