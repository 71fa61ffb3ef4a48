"""Digests of tensors: a few numbers, by which two tensors are compared although they never exist at the same time.

A digest of x has two products <w, x> with random tensors w, which are the same for all tensors of a shape. For another
tensor y of this shape, <w, x> - <w, y> = <w, x - y> is about as large as |x - y|, and it is a thousand times smaller
with a probability of about a thousandth; both products are, with one of a millionth.

Each w is an outer product of one random vector for each dimension. So no w is ever stored, a tensor is read in the
order in which it lies in memory, and slots are left out by zeros in a vector, without a copy of the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.channels.groups import Bools
from fxprune.proof.difference import not_finite

WIDE = 128
"""The least number of columns of the matrix as which a tensor is multiplied, if it has that many elements."""
LARGE, HUGE = 1e90, 1e100
"""Products above the first are looked at closely; numbers above the second count as infinite, since squares are."""


@dataclass(frozen=True)
class Digest:
    """The digest of a tensor.

    norm: |x|; NaN if it was not asked for.
    products: see above. Numbers that are not finite count as 0.
    places: the products of the marks of the numbers that are not finite; (0, 0) if all are.
    """

    shape: tuple[int, ...]
    norm: float
    products: tuple[float, float]
    places: tuple[float, float] = (0.0, 0.0)

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> float:
        """The root of the mean square of the elements; NaN if the norm was not asked for."""
        return self.norm / math.sqrt(self.count or 1)

    def error(self, reference: Digest, norm: float | None = None) -> float:
        """The estimated error |x - y| / |x| against the digest of y; inf for another shape or another infinity.

        norm: a norm to divide by instead of |x|.
        """
        if self.shape != reference.shape:
            return math.inf
        apart = max(abs(a - b) for a, b in zip(self.places, reference.places, strict=True))
        if apart > 1e-6 * (1 + max(map(abs, reference.places))):
            return math.inf
        largest = max(abs(a - b) for a, b in zip(self.products, reference.products, strict=True))
        return largest / ((self.norm if norm is None else norm) or max(map(abs, reference.products)) or 1.0)


class Digester:
    """Makes digests. Keeps the random vectors."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._vectors: list[Tensor] = []
        self._known: dict[Any, tuple[Tensor, Tensor]] = {}

    def digest(self, tensor: Tensor, kept: Sequence[Bools | None] = (), *, norm: bool = True) -> Digest:
        """The digest of a tensor of numbers or flags.

        kept: for each dimension the flags of the slots that count, None for all. The digest is that of the tensor with
            these slots only.
        norm: False to leave out the norm. It would be that of all slots, so leave it out where slots do not count.
        """
        with torch.no_grad(), torch._C._DisableTorchDispatch():
            values = tensor.detach()
            if values.layout is not torch.strided:
                values = values.to_dense()
            if values.is_complex():
                values = torch.view_as_real(values.resolve_conj())
            values = values.to(torch.float64)
            flags = [*kept, *[None] * (values.ndim - len(kept))]
            shape = tuple(
                size if known is None else int(known.sum()) for size, known in zip(values.shape, flags, strict=True)
            )
            numbers = self._numbers(values, flags, norm=norm)
            places = [0.0, 0.0]
            if not max(map(abs, numbers[:2])) < LARGE:
                values = cut(values, flags)
                flags = [None] * values.ndim
                values = torch.where(values.abs() < HUGE, values, values.sign() * math.inf)
                places = self._numbers(not_finite(values), flags, norm=False)
                numbers = self._numbers(torch.where(values.isfinite(), values, 0.0), flags, norm=norm)
            return Digest(
                shape[: tensor.ndim], numbers[2] if norm else math.nan, (numbers[0], numbers[1]), (places[0], places[1])
            )

    def _numbers(self, values: Tensor, kept: Sequence[Bools | None], *, norm: bool) -> list[float]:
        """The two products of a tensor, and its norm if it is asked for."""
        order = sorted(range(values.ndim), key=values.stride, reverse=True)  # as it lies in memory
        lying = values.permute(order)
        rows, columns = self._factors(lying, order, [kept[dim] for dim in order])
        matrix = lying.reshape(rows.shape[1], columns.shape[1])
        products = (rows * (columns @ matrix.t())).sum(1)
        if not norm:
            return list(products.tolist())
        flat = matrix.reshape(-1)
        return list(torch.cat([products, torch.dot(flat, flat).sqrt().view(1)]).tolist())

    def _factors(self, lying: Tensor, order: Sequence[int], kept: Sequence[Bools | None]) -> tuple[Tensor, Tensor]:
        """The two factors of both random tensors, for a tensor as a matrix: those of rows, [2, rows], and of columns.

        order: the numbers of its dimensions in the digest.
        """
        key = (lying.device, *zip(lying.shape, order, (b"" if k is None else k.tobytes() for k in kept), strict=True))
        if key not in self._known:
            split = len(order)
            while split and math.prod(lying.shape[split:]) < WIDE:
                split -= 1
            each = [self._vector(*part) for part in zip(order, lying.shape, kept, strict=True)]
            rows, columns = _outer(each[:split]), _outer(each[split:])
            self._known[key] = rows.to(lying.device), columns.to(lying.device)
        return self._known[key]

    def _vector(self, dim: int, size: int, kept: Bools | None) -> Tensor:
        """The random vectors of a dimension, [2, size], with zeros for the slots that do not count.

        Numbers are only ever added, so that later digests fit earlier ones.
        """
        while len(self._vectors) <= dim:
            self._vectors.append(torch.empty(2, 0, dtype=torch.float64, device="cpu"))
        count = size if kept is None else int(kept.sum())
        have = self._vectors[dim]
        if have.shape[1] < count:
            more = self._random(max(count, 2 * have.shape[1]) - have.shape[1])
            self._vectors[dim] = have = torch.cat([have, more], 1)
        if kept is None:
            return have[:, :size]
        return have.new_zeros(2, size).masked_scatter_(torch.from_numpy(kept), have[:, :count])

    def _random(self, count: int) -> Tensor:
        """Random numbers of either sign and of variance 1, none of which is near zero: [2, count]."""
        drawn = torch.rand(2, count, generator=self._generator, dtype=torch.float64, device="cpu") - 0.5
        return (drawn + drawn.sign() * 0.5 + (drawn == 0)) / math.sqrt(7 / 12)


def _outer(vectors: Sequence[Tensor]) -> Tensor:
    """The outer products of vectors [2, size], flat: [2, product of the sizes]."""
    made = torch.ones(2, 1, dtype=torch.float64, device="cpu")
    for vector in vectors:
        made = (made[:, :, None] * vector[:, None, :]).flatten(1)
    return made


def cut(tensor: Tensor, kept: Sequence[Bools | None]) -> Tensor:
    """The tensor with these slots only."""
    for dim, flags in enumerate(kept):
        if flags is not None:
            tensor = tensor.index_select(dim, torch.from_numpy(flags).nonzero().view(-1).to(tensor.device))
    return tensor
