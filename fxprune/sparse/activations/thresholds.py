"""Sources of the threshold of a sparse activation: a schedule, a batch's quantile, or a running histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fxprune.errors import PlanError
from fxprune.schedules import Constant, Schedule, as_schedule

_BILLION = 10**9
"""A target sparsity is kept as an integer of so many parts: no cast of a model to half precision changes it."""


@runtime_checkable
class Threshold(Protocol):
    """The source of a `ThresholdActivation`'s threshold. State lives in buffers of that layer, never in here."""

    def buffers(self) -> dict[str, Tensor]:
        """The buffers that the layer keeps besides its `threshold`, with their first values."""

    def advance(self, layer: Any, step: int) -> None:
        """Set what holds at a step; called with 0 in the beginning, and whenever the layer's `step()` is."""

    def observe(self, layer: Any, values: Tensor) -> Tensor:
        """The threshold of one training forward, and what is to be learned from its values (magnitudes, or signed)."""


@dataclass(frozen=True)
class Scheduled:
    """The threshold itself follows a schedule: `Constant`, `Linear`, `AGP` of `fxprune.schedules`, or any function.

    >>> from fxprune.schedules import Linear
    >>> rule = Scheduled(Linear(0.0, 0.4, steps=2))
    >>> [rule.schedule(step) for step in range(3)]
    [0.0, 0.2, 0.4]
    """

    schedule: Schedule

    def buffers(self) -> dict[str, Tensor]:
        """Nothing but the threshold."""
        return {}

    def advance(self, layer: Any, step: int) -> None:
        """threshold = schedule(step)"""
        value = value_at(self.schedule, step, "threshold", negative=not layer.magnitude)
        if not value and layer.magnitude and isinstance(self.schedule, Constant):
            do = "use a larger one, a schedule, or magnitude=False"
            raise PlanError("the threshold is 0", why="no magnitude is below it, so that nothing would ever go", do=do)
        layer.threshold.fill_(value)

    def observe(self, layer: Any, values: Tensor) -> Tensor:
        """The values do not matter."""
        threshold: Tensor = layer.threshold
        return threshold


@dataclass(frozen=True)
class _Tracking:
    """A threshold that follows a target sparsity: the target, and how fast the running estimate follows the batches."""

    sparsity: float | Schedule
    momentum: float = 0.1

    def __post_init__(self) -> None:
        schedule = as_schedule(self.sparsity, what="sparsity")
        if not share_at(schedule, 0) and isinstance(schedule, Constant):
            raise PlanError("the sparsity is 0", at=type(self).__name__, why="nothing would ever go")
        momentum = self.momentum
        if isinstance(momentum, bool) or not isinstance(momentum, (int, float)) or not 0 < momentum <= 1:
            why = "it is the weight of the newest batch in the running estimate"
            raise PlanError(f"momentum must be a number in (0, 1], not {momentum!r}", at=type(self).__name__, why=why)

    def buffers(self) -> dict[str, Tensor]:
        """The target in parts of 10^9, and how many batches were seen."""
        return {"target": torch.zeros((), dtype=torch.int64), "batches": torch.zeros((), dtype=torch.int64)}

    def advance(self, layer: Any, step: int) -> None:
        """target = sparsity(step)"""
        layer.target.fill_(round(share_at(as_schedule(self.sparsity), step) * _BILLION))

    def _follow(self, layer: Any, running: Tensor, new: Tensor) -> None:
        """running <- (1 - momentum) running + momentum new; the first batch counts whole."""
        running.copy_(torch.where(layer.batches == 0, new, torch.lerp(running, new.to(running.dtype), self.momentum)))
        layer.batches.add_(1)


@dataclass(frozen=True)
class Quantile(_Tracking):
    """The quantile of each batch in training, its running mean in evaluation.

    In training, the threshold is the value below which `sparsity` of the batch's elements lie, over all dimensions
    together; elements that equal it survive. `threshold` follows by `momentum`, as the statistics of a batch norm
    do, and is what evaluation uses. Where more than `sparsity` of the elements are equal to the smallest one (zeros
    behind a ReLU), they are set to zero.

    sparsity: the share that is set to zero, in [0, 1), or a schedule of it.
    sample: larger batches are judged by so many of their elements, one from each of as many equal stretches. The
        share p set to zero is then off by about sqrt(p (1 - p) / sample), 0.0016 for 0.8 of 65536; by less where
        neighbours are alike. Sorting them is what this rule costs.

    >>> from fxprune.sparse.activations.layers import ThresholdActivation
    >>> layer = ThresholdActivation(Quantile(0.5))
    >>> layer(torch.tensor([1.0, -4.0, 2.0, -3.0]))
    tensor([ 0., -4.,  0., -3.])
    >>> layer.threshold
    tensor(3.)
    """

    sample: int = 65536

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.sample, bool) or not isinstance(self.sample, int) or self.sample < 1:
            raise PlanError(f"sample must be an integer of at least 1, not {self.sample!r}", at="Quantile")

    def observe(self, layer: Any, values: Tensor) -> Tensor:
        """The quantile of the values."""
        ordered = sampled(values, self.sample).sort().values
        count = (layer.target * ordered.numel() + _BILLION // 2) // _BILLION
        threshold = ordered.index_select(0, count.clamp(max=ordered.numel() - 1).view(1)).view(())
        self._follow(layer, layer.threshold, threshold)
        return threshold


@dataclass(frozen=True)
class Histogram(_Tracking):
    """The quantile of a running histogram, in training as in evaluation.

    `histogram` holds the distribution of the values of recent batches, each forgotten by `momentum`; the threshold
    is the value below which `sparsity` of it lies. One odd batch, or a batch of one, moves it little. Unlike that of
    `Quantile`, the share set to zero in a single batch may be off.

    Bins are `per_octave` to each power of two, from 2^-32 to 2^32, on both sides of zero, which needs no range to be
    known; magnitudes below the smallest one count as zero. A threshold is off by at most the width of a bin, a factor
    of 2^(1 / per_octave): 2.2 %.

    sparsity: the share that is set to zero, in [0, 1), or a schedule of it.

    >>> from fxprune.sparse.activations.layers import ThresholdActivation
    >>> layer = ThresholdActivation(Histogram(0.75))
    >>> y = layer(torch.linspace(0.001, 1, 1000))
    >>> round(layer.threshold.item(), 2), round(layer.zeros.item(), 2)
    (0.75, 0.75)
    """

    per_octave: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.per_octave, bool) or not isinstance(self.per_octave, int) or not 1 <= self.per_octave <= 512:
            raise PlanError(f"per_octave must be an integer from 1 to 512, not {self.per_octave!r}", at="Histogram")

    @property
    def _half(self) -> int:
        """The number of bins on one side of zero."""
        return 2 * _OCTAVES * self.per_octave

    def buffers(self) -> dict[str, Tensor]:
        """The shares of the bins as well: those of negative values, of zero, of positive ones."""
        return {**super().buffers(), "histogram": torch.zeros(2 * self._half + 1)}

    def observe(self, layer: Any, values: Tensor) -> Tensor:
        """The quantile of the histogram, into which the values have gone."""
        bins = self._bins(values)
        counts = torch.zeros(2 * self._half + 1, dtype=torch.int64, device=bins.device)
        counts.scatter_add_(0, bins, torch.ones_like(bins))
        precise = torch.promote_types(layer.histogram.dtype, torch.float32)
        self._follow(layer, layer.histogram, (counts.to(precise) / bins.numel()).to(layer.histogram.dtype))
        shares = layer.histogram.to(precise)
        below = shares.cumsum(0)
        target = (layer.target.to(below.dtype) / _BILLION) * below[-1]
        found = torch.searchsorted(below, target.view(1)).clamp(max=2 * self._half)
        share = shares.index_select(0, found)
        inside = ((target - below.index_select(0, found) + share) / share.clamp_min(1e-12)).clamp(0, 1)
        value = self._value(found, inside).view(())
        layer.threshold.copy_(value.clamp_min(0.0) if layer.magnitude else value)
        threshold: Tensor = layer.threshold
        return threshold

    def _bins(self, values: Tensor) -> Tensor:
        """Bin half + 1 + floor((log2 |v| + 32) per_octave) for positive values, mirrored for negative ones."""
        values = values.flatten().to(torch.promote_types(values.dtype, torch.float32))
        place = ((values.abs().log2() + _OCTAVES) * self.per_octave).floor().clamp(-1, self._half - 1).nan_to_num(-1.0)
        return (self._half + (place + 1) * values.sign().nan_to_num(0.0)).to(torch.int64)

    def _value(self, bins: Tensor, inside: Tensor) -> Tensor:
        """The value at a share of the way through a bin, on the scale of its logarithm."""
        place = bins - self._half
        along = torch.where(place > 0, place - 1 + inside, -place - inside)
        return torch.exp2(along / self.per_octave - _OCTAVES) * place.sign()


_OCTAVES = 32


def as_threshold(value: Any) -> Threshold:
    """A number or a schedule as the threshold itself; what says where a threshold comes from, as it is.

    >>> as_threshold(0.1)
    Scheduled(schedule=Constant(value=0.1))
    """
    if isinstance(value, type):
        raise PlanError(f"the threshold is the class {value.__name__}", do=f"pass one of it: {value.__name__}(...)")
    if isinstance(value, Threshold):
        return value
    return Scheduled(as_schedule(value, what="threshold"))


def value_at(schedule: Schedule, step: int, what: str, *, negative: bool) -> float:
    """The value of a schedule at a step. Raises `PlanError` where it is no finite number, or negative."""
    value = schedule(step)
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fine:
        raise PlanError(f"the {what} must be a finite number, not {value!r}", at=f"step {step}")
    if value < 0 and not negative:
        raise PlanError(
            f"the {what} must be at least 0, not {value!r}",
            at=f"step {step}",
            why="no magnitude is below it, so that nothing would ever go",
            do="use a larger one, or magnitude=False to compare signed values",
        )
    return float(value)


def share_at(schedule: Schedule, step: int) -> float:
    """The target sparsity at a step, in [0, 1). Raises `PlanError` for anything else."""
    value = value_at(schedule, step, "sparsity", negative=True)
    if not 0 <= value < 1:
        raise PlanError(f"the sparsity must be in [0, 1), not {value!r}", at=f"step {step}")
    return value


def sampled(values: Tensor, count: int) -> Tensor:
    """At most `count` elements, flat, in a type that can be sorted: one from each of `count` equal stretches.

    Where in its stretch is fixed, and spread by Knuth's multiplicative hash: equal strides would meet the same column
    or the same channel again and again, and random numbers would change what the rest of a program draws.

    >>> sampled(torch.arange(12.0), 4)
    tensor([ 0.,  4.,  8., 10.])
    """
    flat = values.flatten()
    size = flat.numel()
    if size > count:
        edges = torch.arange(count + 1, device=flat.device) * size // count
        start, end = edges[:-1], edges[1:]
        place = torch.arange(count, device=flat.device) * 2654435761 % 2**32 // 2**8
        flat = flat[start + place % (end - start)]
    return flat.to(torch.promote_types(flat.dtype, torch.float32))
