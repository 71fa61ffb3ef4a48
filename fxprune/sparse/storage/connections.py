"""The components of a sparse weight from the positions of its values, without a dense weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.sparse.storage.matrices import Indices, Spec


def connections(
    spec: Spec, where: Tensor, values: Tensor | None, dtype: torch.dtype | None = None
) -> tuple[Indices, Tensor]:
    """Returns the index tensors and the values of a matrix from the positions of its values, sorted by row and column.

    Meanwhile it holds up to 40 bytes per connection beside the arguments and the result, and nothing of the size of the
    matrix. Positions that are sorted already are not sorted again.

    Args:
        spec: the format of the matrix, "csr" or "coo".
        where: integers [2, connections]: rows, then columns.
        values: [connections], or None: they are drawn uniformly in +-1 / sqrt(k), where k values stand in their row.
        dtype: the type of drawn values; torch's default type if it is None.

    Raises `PlanError` for another layout, and for positions and values that do not fit each other or the matrix.
    """
    if spec.layout not in ("csr", "coo"):
        why = f"{spec.layout!r} stores blocks or is unknown"
        raise PlanError(
            "single connections are stored as csr or coo", at=f"layout={spec.layout!r}", why=why, do='pass layout="csr"'
        )
    rows, columns = _checked(where, spec.shape)
    order = _order(rows, columns, spec.shape)
    if order is not None:
        rows, columns = rows[order], columns[order]
    twice = (rows[1:] == rows[:-1]) & (columns[1:] == columns[:-1])
    if bool(twice.any()):
        at = int(twice.nonzero()[0, 0])
        raise PlanError(
            "a connection is named twice",
            at="indices",
            why=f"from input {int(columns[at])} to output {int(rows[at])}",
            do="name it once; torch.sparse_coo_tensor(...).coalesce() adds values up",
        )
    counts = torch.bincount(rows, minlength=spec.shape[0])
    if values is None:
        bounds = counts.clamp(min=1).to(dtype or torch.get_default_dtype()).rsqrt_()
        made = torch.empty(len(rows), dtype=bounds.dtype, device=rows.device).uniform_(-1, 1).mul_(bounds[rows])
    else:
        if values.shape != rows.shape or not values.is_floating_point() or values.device != rows.device:
            raise PlanError(
                "the values do not fit the indices",
                at="from_indices",
                why=f"they are {values.dtype} of shape {tuple(values.shape)} on {values.device}, for {len(rows)} "
                f"connections on {rows.device}",
                do="pass one floating value for each connection",
            )
        if bool(values.isnan().any()):
            raise PlanError(
                "the values hold NaN",
                at="from_indices",
                why="every output of the connection would be NaN",
                do="pass finite numbers",
            )
        made = values.detach().clone() if order is None else values.detach()[order]
    kind = spec.index_dtype(len(rows))
    if spec.layout == "coo":
        return (torch.stack((rows, columns)).to(kind),), made
    crow = torch.zeros(spec.shape[0] + 1, dtype=kind, device=rows.device)
    crow[1:] = counts.cumsum(0)
    return (crow, columns.to(kind)), made


def initial_bias(spec: Spec, indices: Indices, values: Tensor) -> Tensor:
    """Returns a bias [rows], uniform in +-1 / sqrt(k), where k values stand in a row; `nn.Linear` takes its inputs."""
    coordinates = spec.layout == "coo"
    counts = torch.bincount(indices[0][0], minlength=spec.shape[0]) if coordinates else indices[0].diff()
    bound = counts.clamp(min=1).to(values.dtype).rsqrt_()
    return torch.empty_like(bound).uniform_(-1, 1).mul_(bound)


def _checked(where: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns rows and columns as int64. Raises `PlanError` for indices that are no positions in the matrix."""
    if where.ndim != 2 or len(where) != 2 or where.is_floating_point() or where.dtype is torch.bool:
        raise PlanError(
            "indices must be integers [2, connections]: the outputs, then the inputs",
            at="indices",
            why=f"they are {where.dtype} of shape {tuple(where.shape)}",
            do="pass `mask.nonzero().T`, or the indices() of a sparse tensor",
        )
    rows, columns = where.detach().to(torch.int64)
    for what, index, size in (("output", rows, shape[0]), ("input", columns, shape[1])):
        if not len(index):
            raise PlanError(
                "indices name no connection",
                at="indices",
                why="a layer that connects nothing is of no use",
                do="name at least one connection",
            )
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= size:
            raise PlanError(
                f"there is no {what} {low if low < 0 else high} to connect",
                at="indices",
                why=f"the layer has the {what}s 0 to {size - 1}",
                do="pass the outputs first, then the inputs",
            )
    return rows, columns


def _order(rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor | None:
    """Returns the order by row and column; None if the positions are in this order already."""
    above = rows[1:] > rows[:-1]
    if bool((above | ((rows[1:] == rows[:-1]) & (columns[1:] >= columns[:-1]))).all()):
        return None
    if math.prod(shape) < 2**63:
        return (rows * shape[1] + columns).argsort()
    order = columns.argsort(stable=True)
    return order[rows[order].argsort(stable=True)]
