"""Layouts of tensors: those in plain memory, and sparse and nested ones, which have no dimensions that can be cut."""

from __future__ import annotations

import torch

SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
"""The layouts of torch for matrices of which most numbers are zero."""


def is_sparse(tensor: torch.Tensor) -> bool:
    """True for a tensor of a sparse layout. It stays as it is: nothing is cut out of it."""
    return tensor.layout in SPARSE


def is_packed(tensor: torch.Tensor) -> bool:
    """True for a quantized and for a nested tensor: no fake tensor stands for it, and nothing is cut out of it."""
    return tensor.is_quantized or tensor.is_nested


def memory_of(tensor: torch.Tensor) -> int:
    """A number for the memory of a tensor, the same for all its views; a number of its own for one without memory."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse
        return -id(tensor)


def dense_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that hold the numbers and the positions of a sparse tensor; for any other one itself."""
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if is_sparse(tensor):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor]


def nested_kind(tensor: torch.Tensor) -> str:
    """The layout of a nested tensor, "" for any other tensor."""
    return f"a nested tensor of layout {tensor.layout}" if tensor.is_nested else ""
