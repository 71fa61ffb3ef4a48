"""Second moments of what a layer reads and what it lacks, and the ridge regression that they decide.

For rows x [k] of inputs and rows d [o] of residuals (the wanted output minus that of the layer as it is), a change
`(dW, db)` of weight and bias has the error

    E(dW, db) = sum over rows of v * |d - dW x - db|^2,    v: the weight of a row

which needs only the sums of v, v x, v d, v x x^T, v d x^T and v d^2. The rows themselves are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fxprune.running.moving import symmetric_product

SMALL = 512
"""Up to so many inputs, all ridges are solved by one eigendecomposition."""

CUTOFF = 1e-12
"""Directions of the inputs with less than this share of the largest second moment are left as they are."""


@dataclass
class Moments:
    """The sums over rows, float64; g blocks, k inputs, o outputs.

    rows: v, [g]. x: [g, k]. d: [g, o]. xx: [g, k, k]. dx: [g, o, k]. dd: [g]. yy: the sum of v |y|^2 for the wanted
    outputs y, [g].
    """

    rows: Tensor
    x: Tensor
    d: Tensor
    xx: Tensor
    dx: Tensor
    dd: Tensor
    yy: Tensor

    @classmethod
    def zeros(cls, blocks: int, inputs: int, outputs: int, device: torch.device) -> Moments:
        """No rows yet."""

        def made(*shape: int) -> Tensor:
            return torch.zeros(blocks, *shape, dtype=torch.float64, device=device)

        return cls(made(), made(inputs), made(outputs), made(inputs, inputs), made(outputs, inputs), made(), made())

    def add(self, x: Tensor, wanted: Tensor, residual: Tensor, weights: Tensor | None, *, squares: bool = True) -> None:
        """Add rows. x: [g, r, k]. wanted, residual: [g, r, o]. weights: [g, r], None for 1 each.

        squares: False if x x^T is added elsewhere.
        """
        v = torch.ones_like(x[..., 0]) if weights is None else weights
        weighted, lacking = x * v[..., None], residual * v[..., None]
        self.rows += v.sum(1)
        self.x += weighted.sum(1)
        self.d += lacking.sum(1)
        if squares:
            self.xx += symmetric_product(x, weighted)
        self.dx += lacking.mT @ x
        self.dd += (lacking * residual).sum((1, 2))
        self.yy += (wanted.square() * v[..., None]).sum((1, 2))

    def tensors(self) -> tuple[Tensor, ...]:
        """All sums; those of several processes are added in place."""
        return self.rows, self.x, self.d, self.xx, self.dx, self.dd, self.yy

    def error(self, change: Tensor, offset: Tensor) -> float:
        """E of a change. change: [g, o, k]. offset: [g, o]."""
        squares = (change @ self.xx * change).sum((1, 2)) + self.rows * offset.square().sum(1)
        products = (change * self.dx).sum((1, 2)) + (offset * self.d).sum(1)
        mixed = (offset * (change @ self.x[..., None])[..., 0]).sum(1)
        return float((self.dd + squares - 2 * products + 2 * mixed).sum().clamp(min=0))

    @property
    def scale(self) -> float:
        """The sum of v |y|^2, which makes an error relative."""
        return float(self.yy.sum())

    def offset(self) -> Tensor:
        """The best offset where the weight stays: the mean of the residuals, [g, o]."""
        return self.d / self.rows.clamp(min=torch.finfo(torch.float64).tiny)[:, None]


class Regression:
    """The ridge regression that some moments decide.

    shifted: False where no offset can be added.
    """

    def __init__(self, moments: Moments, *, shifted: bool) -> None:
        self.moments, self.shifted = moments, shifted
        self._count = moments.rows.clamp(min=torch.finfo(torch.float64).tiny)[:, None, None]
        self._xx, self._dx = moments.xx, moments.dx
        if shifted:
            self._xx = self._xx - moments.x[..., None] * moments.x[:, None] / self._count
            self._dx = self._dx - moments.d[..., None] * moments.x[:, None] / self._count
        self._mean = self._xx.diagonal(dim1=1, dim2=2).mean(1)

    def change(self, ridge: float) -> tuple[Tensor, Tensor]:
        """The best change of the weight, [g, o, k], and the offset, [g, o].

        ridge: the ridge as a share of the mean second moment of an input.
        """
        change = self._solved(ridge) if ridge and self._xx.shape[1] > SMALL else self._turned(ridge)
        if not self.shifted:
            return change, torch.zeros_like(self.moments.d)
        return change, (self.moments.d - (change @ self.moments.x[..., None])[..., 0]) / self._count[..., 0]

    def _solved(self, ridge: float) -> Tensor:
        """The change by Cholesky's method, which is fast."""
        more = self._xx.clone()
        more.diagonal(dim1=1, dim2=2).add_(ridge * self._mean[:, None])
        factor, failed = torch.linalg.cholesky_ex(more)
        return self._turned(ridge) if bool(failed.any()) else torch.cholesky_solve(self._dx.mT, factor).mT

    def _turned(self, ridge: float) -> Tensor:
        """The change by eigenvectors, which leave directions without data as they are."""
        values, vectors = self._eigen
        found = values > CUTOFF * values[:, -1:]
        inverse = torch.where(found, 1 / (values + ridge * self._mean[:, None]), 0.0)
        return (self._dx @ vectors * inverse[:, None]) @ vectors.mT

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues in ascending order, and the eigenvectors."""
        values, vectors = torch.linalg.eigh(self._xx)
        return values.clamp(min=0), vectors
