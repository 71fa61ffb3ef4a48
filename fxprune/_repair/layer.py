"""The refit of one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune._repair.moments import Moments, Regression
from fxprune._repair.pairs import LayerPair
from fxprune.errors import InputError
from fxprune.running.products import MovingSum, WeightProduct, double
from fxprune.running.watch import Parameters, ProductCall

FLOOR = 1e-4
"""The least weight of a row's own length, as a share of the mean: rows of zeros do not count without end."""


@dataclass(frozen=True)
class Refit:
    """The result for a layer.

    error, repaired: the relative squared error of its outputs on held-out samples, before and after. ridge: the chosen
    one, None if the weight stays.
    """

    error: float
    repaired: float
    ridge: float | None


@dataclass(frozen=True)
class Option:
    """A possible refit: its error on the held-out samples, its ridge, and what it adds to weight and bias."""

    error: float
    ridge: float | None
    change: Tensor
    offset: Tensor


class LayerFit:
    """Gathers the moments of a layer, and refits it."""

    def __init__(self, pair: LayerPair, small: Parameters, original: Parameters) -> None:
        self.pair, self.small, self.original = pair, small, original
        self.train: Moments | None = None
        self.held: Moments | None = None
        self.product: WeightProduct | None = None
        self._moving: dict[bool, MovingSum] = {}
        self.rows = 0  # those to fit, of this process

    def add(self, calls: Iterable[tuple[ProductCall, ProductCall]], *, held_out: bool) -> str:
        """Add the rows of some calls. Returns why the layer cannot be refitted, "" if it can."""
        for ours, theirs in calls:
            product, wanted = ours.product, self.pair.wanted(theirs, self.original).to(double(ours.product.x).device)
            made = product.form.shape(product.x, product.weight)
            if made != tuple(wanted.shape):
                return f"the two models call it with other rows: {list(made)} and {list(wanted.shape)}"
            self.product = product
            matrix, bias = self.matrix(product), self.bias(product)
            moving = None if self.pair.weighted else product.form.moving(product.x, product.weight)
            for x, y in product.form.rows(product.x, wanted, product.weight):
                self._add(x, y, y - x @ matrix.mT - bias[:, None], held_out, squares=moving is None)
            if moving is not None:
                self._moving.setdefault(held_out, moving).add(product.x)
        return ""

    def sums(self) -> list[Tensor]:
        """All sums over the rows of the calls, to which those of other processes may be added."""
        for held_out, moving in self._moving.items():
            self._into(held_out).xx.add_(moving.total())
        self._moving.clear()
        return [tensor for held_out in (False, True) for tensor in self._into(held_out).tensors()]

    @property
    def inputs(self) -> int:
        """The number of inputs of a block."""
        return self._into(False).x.shape[1]

    def _into(self, held_out: bool) -> Moments:
        into = self.held if held_out else self.train
        assert into is not None
        return into

    def _add(self, x: Tensor, wanted: Tensor, residual: Tensor, held_out: bool, *, squares: bool) -> None:
        if not (bool(x.isfinite().all()) and bool(wanted.isfinite().all())):
            raise not_finite(self.pair.key[0])
        for moments in ("train", "held"):
            if getattr(self, moments) is None:
                setattr(self, moments, Moments.zeros(x.shape[0], x.shape[2], residual.shape[2], x.device))
        weights = None
        if self.pair.weighted:
            lengths = wanted.square().sum(2)
            weights = 1 / (lengths + FLOOR * lengths.mean().clamp(min=torch.finfo(torch.float64).tiny))
        self.rows += 0 if held_out else x.shape[1]
        self._into(held_out).add(x, wanted, residual, weights, squares=squares)

    def matrix(self, product: WeightProduct) -> Tensor:
        """The weight as it is, [g, o, k]."""
        return double(product.form.matrix(product.weight))

    def bias(self, product: WeightProduct) -> Tensor:
        """The bias as it is, [g, o]; zeros without one."""
        blocks, outputs = self.matrix(product).shape[:2]
        if self.pair.small.bias is None:
            return torch.zeros(blocks, outputs, dtype=torch.float64, device=double(product.weight).device)
        name, start = self.pair.small.bias
        values = double(self.small.tensors[name]).flatten()
        if len(values) == blocks * outputs:
            return values.view(blocks, outputs)
        return values[start : start + outputs].expand(blocks, outputs)

    def solve(self, ridges: Sequence[float], *, weights: bool) -> Refit:
        """Refit the layer if its error on the held-out samples gets smaller. weights: False for its bias only.

        A layer that lacks nothing but rounding stays as it is.
        """
        assert self.train is not None
        assert self.held is not None
        before, scale = self.held.error(*self._nothing()), self.held.scale or 1.0
        if before <= scale * self._rounding:
            return Refit(before / scale, before / scale, None)
        options: list[Option] = []
        if self.pair.shifted:
            options.append(self._option(None, self._nothing()[0], self.train.offset()))
        if weights:
            regression = Regression(self.train, shifted=self.pair.shifted)
            options.append(self._best(lambda ridge: self._option(ridge, *regression.change(ridge)), sorted(ridges)))
        best = min(options, key=lambda option: option.error, default=None)
        if best is None or not best.error < before:
            return Refit(before / scale, before / scale, None)
        self._apply(best.change, best.offset)
        return Refit(before / scale, best.error / scale, best.ridge)

    @staticmethod
    def _best(option: Callable[[float], Option], ridges: Sequence[float]) -> Option:
        """The best option: the error falls and then rises with the ridge, so that not all ridges are tried."""
        middle = len(ridges) // 2
        best = option(ridges[middle])
        for others in (ridges[middle + 1 :], ridges[:middle][::-1]):
            start = best.ridge
            for ridge in others:
                other = option(ridge)
                if not other.error < best.error:
                    break
                best = other
            if best.ridge != start:
                break
        return best

    def _option(self, ridge: float | None, change: Tensor, offset: Tensor) -> Option:
        assert self.held is not None
        return Option(self.held.error(change, offset), ridge, change, offset)

    @property
    def _rounding(self) -> float:
        """The relative squared error that rounding of the model's numbers makes."""
        assert self.product is not None
        return (16 * torch.finfo(self.product.weight.dtype).eps) ** 2

    def _nothing(self) -> tuple[Tensor, Tensor]:
        assert self.train is not None
        return torch.zeros_like(self.train.dx), torch.zeros_like(self.train.d)

    def _apply(self, change: Tensor, offset: Tensor) -> None:
        """Change weight and bias, or the running mean, in place."""
        product = self.product
        assert product is not None
        with torch.no_grad():
            made = product.form.weight(self.matrix(product) + change, product.weight)
            product.weight.copy_(made)
            if self.pair.small.bias is not None:
                name, start = self.pair.small.bias
                bias = self.small.tensors[name].view(-1)
                part = bias if offset.numel() == len(bias) else bias[start : start + offset.shape[1]]
                part.copy_(double(part) + offset.flatten().to(double(part).device))
            elif self.pair.mean is not None:
                mean = self.small.tensors[self.pair.mean]
                mean.copy_(double(mean) - offset.flatten().to(double(mean).device))


def not_finite(layer: str, where: str = "") -> InputError:
    """The error for NaN in a layer."""
    return InputError(
        "a layer reads or gives numbers that are not finite",
        at=", ".join(part for part in (f'"{layer}"', where) if part),
        why="no regression is possible with NaN or infinities",
        do="look for the batch that causes it, and leave it out",
    )
