"""Digests of tensors: a few numbers, by which two tensors are compared although they never exist at the same time.

A digest of x has the norm |x| and two products <w, x> with random vectors w, which are the same for all tensors of a
shape. For another tensor y of this shape, <w, x> - <w, y> = <w, x - y> is as large as |x - y| on average, and is a
thousand times smaller with a probability of a thousandth; both products are, with one of a millionth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import _disable_current_modes

from fxprune.proof.difference import not_finite

ROW = 1 << 15
HUGE = 1e100
"""Larger numbers count as infinite, since their squares are."""


@dataclass(frozen=True)
class Digest:
    """The digest of a tensor.

    norm, products: see above; numbers that are not finite count as 0.
    places: the products of the marks of the numbers that are not finite; (0, 0) if all are.
    """

    shape: tuple[int, ...]
    norm: float
    products: tuple[float, float]
    places: tuple[float, float]

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def error(self, reference: Digest) -> float:
        """The estimated error |x - y| / |y| against the digest of y; inf for another shape or another infinity."""
        if self.shape != reference.shape:
            return math.inf
        apart = max(abs(a - b) for a, b in zip(self.places, reference.places, strict=True))
        if apart > 1e-6 * (1 + max(map(abs, reference.places))):
            return math.inf
        largest = max(abs(a - b) for a, b in zip(self.products, reference.products, strict=True))
        return largest / (reference.norm or 1.0)


class Digester:
    """Makes digests. Keeps the random vectors."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._vectors: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def digest(self, tensor: torch.Tensor) -> Digest:
        """The digest of a tensor of numbers or flags."""
        with torch.no_grad(), _disable_current_modes():
            values = tensor.detach()
            if values.is_complex():
                values = torch.view_as_real(values.resolve_conj())
            flat = values.to(torch.float64).reshape(-1)
            norm, products = self._numbers(flat)
            places = (0.0, 0.0)
            if not norm < HUGE:
                flat = torch.where(flat.abs() < HUGE, flat, flat.sign() * math.inf)
                places = self._numbers(not_finite(flat))[1]
                norm, products = self._numbers(torch.where(flat.isfinite(), flat, 0.0))
            return Digest(tuple(tensor.shape), norm, products, places)

    def _numbers(self, flat: torch.Tensor) -> tuple[float, tuple[float, float]]:
        """The norm and the products of a vector, which is taken as rows of the length `ROW`."""
        size = flat.numel()
        rows = size // ROW
        short, long = self._vectors_for(flat.device, rows + 1)
        products = flat[rows * ROW :] @ short[: size - rows * ROW]
        if rows:
            products = products + (long[1 : rows + 1] * (flat[: rows * ROW].view(rows, ROW) @ short)).sum(0)
        norm, first, second = torch.cat([flat.norm().view(1), products]).tolist()
        return norm, (first, second)

    def _vectors_for(self, device: torch.device, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random numbers: those of a row, [ROW, 2], and the factors of at least `rows` rows, [rows, 2].

        Factors are only ever added, so that later digests fit earlier ones.
        """
        short, long = self._vectors.get(device) or (self._random(ROW).to(device), torch.empty(0, 2, device=device))
        if len(long) < rows:
            long = torch.cat([long, self._random(max(rows, 2 * len(long)) - len(long)).to(device)])
        self._vectors[device] = short, long
        return short, long

    def _random(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, 2, generator=self._generator, dtype=torch.float64)
