"""Rules for the threshold of activations: a schedule, the quantile of each batch, or a running histogram."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fxprune.arguments import fits
from fxprune.errors import PlanError
from fxprune.schedules import Constant, Schedule, as_schedule

_BILLION = 10**9
"""A target sparsity is stored as an integer, in units of 1e-9: a cast of the model to half precision keeps it."""


@runtime_checkable
class Threshold(Protocol):
    """The rule for the threshold of a `ThresholdActivation`. Its state stands in buffers of that layer, not here."""

    def buffers(self) -> dict[str, Tensor]:
        """Returns the buffers that the layer needs besides `threshold`, with their first values."""

    def advance(self, layer: Any, step: int) -> None:
        """Sets the buffers of the layer for a step. Called with step 0 at first, and by the layer's `step()`."""

    def observe(self, layer: Any, values: Tensor) -> Tensor:
        """Returns the threshold of one training forward, and updates the buffers from its values.

        values: magnitudes, or signed numbers if the layer has magnitude=False.
        """


@dataclass(frozen=True)
class Scheduled:
    """The threshold follows a schedule: `Constant`, `Linear`, `AGP` of `fxprune.schedules`, or any function.

    >>> from fxprune.schedules import Linear
    >>> rule = Scheduled(Linear(0.0, 0.4, steps=2))
    >>> [rule.schedule(step) for step in range(3)]
    [0.0, 0.2, 0.4]
    """

    schedule: Schedule

    def buffers(self) -> dict[str, Tensor]:
        """Returns no buffers; the threshold is enough."""
        return {}

    def advance(self, layer: Any, step: int) -> None:
        """threshold = schedule(step)"""
        value = value_at(self.schedule, step, "threshold", negative=not layer.magnitude)
        if not value and layer.magnitude and isinstance(self.schedule, Constant):
            do = "use a larger one, a schedule, or magnitude=False"
            raise PlanError(
                "the threshold is 0",
                at=type(layer).__name__,
                why="no magnitude is below it, so that nothing would ever go",
                do=do,
            )
        layer.threshold.fill_(value)

    def observe(self, layer: Any, values: Tensor) -> Tensor:
        """Returns the threshold of the schedule, whatever the values are."""
        threshold: Tensor = layer.threshold
        return threshold


@dataclass(frozen=True)
class _AimsAtSparsity:
    """A rule that aims at a sparsity. momentum: the weight of the newest batch in the running estimate."""

    sparsity: float | Schedule
    momentum: float = 0.1

    def __post_init__(self) -> None:
        schedule = as_schedule(self.sparsity, what="sparsity")
        if not share_at(schedule, 0) and isinstance(schedule, Constant):
            raise PlanError(
                "the sparsity is 0",
                at=type(self).__name__,
                why="nothing would ever go",
                do="pass a share such as 0.5, or a schedule that begins at 0",
            )
        momentum = self.momentum
        if not fits(momentum, float) or not 0 < momentum <= 1:
            why = "it is the weight of the newest batch in the running estimate"
            raise PlanError(
                f"momentum must be a number in (0, 1], not {momentum!r}",
                at=type(self).__name__,
                why=why,
                do="pass for example momentum=0.1",
            )

    def buffers(self) -> dict[str, Tensor]:
        """Returns the target in units of 1e-9, and the number of batches."""
        return {"target": torch.zeros((), dtype=torch.int64), "batches": torch.zeros((), dtype=torch.int64)}

    def advance(self, layer: Any, step: int) -> None:
        """target = sparsity(step)"""
        layer.target.fill_(round(share_at(as_schedule(self.sparsity), step) * _BILLION))

    def _update_running_mean(self, layer: Any, running: Tensor, new: Tensor) -> None:
        """running <- (1 - momentum) running + momentum new; the first batch sets running <- new."""
        running.copy_(torch.where(layer.batches == 0, new, torch.lerp(running, new.to(running.dtype), self.momentum)))
        layer.batches.add_(1)


@dataclass(frozen=True)
class Quantile(_AimsAtSparsity):
    """The threshold is the quantile of each batch in training mode, and the running mean of it in evaluation mode.

    In training mode, a share of `sparsity` of the batch's elements, over all dimensions together, lies below the
    threshold; elements equal to it stay. The layer's buffer `threshold` is a running mean, updated like the statistics
    of a batch norm. More than the share is zero only if more elements already were, as after a ReLU.

    sparsity: the share to set to zero, in [0, 1), or a schedule of it.
    momentum: the weight of the newest batch in the running mean, in (0, 1].
    sample: the largest number of elements that are sorted. Of a larger batch, one element from each of `sample` equal
        parts is taken. The share p that is set to zero is then off by about sqrt(p (1 - p) / sample): 0.0016 for
        p = 0.8 and sample = 65536, and less if neighbours are similar.

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
            raise PlanError(
                f"sample must be an integer of at least 1, not {self.sample!r}",
                at="Quantile",
                why="it is the number of activations that are looked at",
                do="pass for example sample=65536",
            )

    def observe(self, layer: Any, values: Tensor) -> Tensor:
        """Returns the quantile of the values, and updates the running mean."""
        ordered = sampled(values, self.sample).sort().values
        count = (layer.target * ordered.numel() + _BILLION // 2) // _BILLION
        threshold = ordered.index_select(0, count.clamp(max=ordered.numel() - 1).view(1)).view(())
        self._update_running_mean(layer, layer.threshold, threshold)
        return threshold


@dataclass(frozen=True)
class Histogram(_AimsAtSparsity):
    """The threshold is the quantile of a running histogram, in both modes.

    The layer's buffer `histogram` is a running mean of the distributions of the batches, and a share of `sparsity` of
    it lies below the threshold. A single unusual batch, or a batch of one, changes the threshold little. The share that
    is set to zero in a single batch may differ from `sparsity`, unlike with `Quantile`.

    There are `per_octave` bins for each power of two from 2^-32 to 2^32, for either sign, so that no range has to be
    known. Smaller magnitudes count as zero. The error of a threshold is at most the width of a bin, a factor of
    2^(1 / per_octave): 2.2 % by default.

    sparsity: the share to set to zero, in [0, 1), or a schedule of it.
    momentum: the weight of the newest batch in the running mean, in (0, 1].

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
            raise PlanError(
                f"per_octave must be an integer from 1 to 512, not {self.per_octave!r}",
                at="Histogram",
                why="it is the number of bins between a number and its double",
                do="pass for example per_octave=32",
            )

    @property
    def _bins_per_sign(self) -> int:
        """The number of bins on one side of zero."""
        return 2 * _OCTAVES * self.per_octave

    def buffers(self) -> dict[str, Tensor]:
        """Returns also the shares of the bins, ordered by value: negative values, zero, positive values."""
        return {**super().buffers(), "histogram": torch.zeros(2 * self._bins_per_sign + 1)}

    def observe(self, layer: Any, values: Tensor) -> Tensor:
        """Adds the values to the histogram, and returns its quantile."""
        bins = self._bins_of(values)
        counts = torch.zeros(2 * self._bins_per_sign + 1, dtype=torch.int64, device=bins.device)
        counts.scatter_add_(0, bins, torch.ones_like(bins))
        dtype = torch.promote_types(layer.histogram.dtype, torch.float32)
        self._update_running_mean(layer, layer.histogram, (counts.to(dtype) / bins.numel()).to(layer.histogram.dtype))
        shares = layer.histogram.to(dtype)
        below = shares.cumsum(0)
        target = (layer.target.to(below.dtype) / _BILLION) * below[-1]
        found = torch.searchsorted(below, target.view(1)).clamp(max=2 * self._bins_per_sign)
        share = shares.index_select(0, found)
        inside = ((target - below.index_select(0, found) + share) / share.clamp_min(1e-12)).clamp(0, 1)
        value = self._value_in_bin(found, inside).view(())
        layer.threshold.copy_(value.clamp_min(0.0) if layer.magnitude else value)
        threshold: Tensor = layer.threshold
        return threshold

    def _bins_of(self, values: Tensor) -> Tensor:
        """bin(v) = half + 1 + floor((32 + log2 v) per_octave), v > 0; mirrored for v < 0; half = `_bins_per_sign`."""
        values = values.flatten().to(torch.promote_types(values.dtype, torch.float32))
        place = ((values.abs().log2() + _OCTAVES) * self.per_octave).floor().clamp(-1, self._bins_per_sign - 1)
        place = place.nan_to_num(-1.0)
        return (self._bins_per_sign + (place + 1) * values.sign().nan_to_num(0.0)).to(torch.int64)

    def _value_in_bin(self, bins: Tensor, inside: Tensor) -> Tensor:
        """Returns a value inside a bin; inside: its position between the edges, in [0, 1] on a logarithmic scale."""
        place = bins - self._bins_per_sign
        along = torch.where(place > 0, place - 1 + inside, -place - inside)
        return torch.exp2(along / self.per_octave - _OCTAVES) * place.sign()


_OCTAVES = 32


def as_threshold(value: Any) -> Threshold:
    """Returns `Scheduled` for a number or a schedule; returns a rule as it is.

    >>> as_threshold(0.1)
    Scheduled(schedule=Constant(value=0.1))
    """
    if isinstance(value, type):
        raise PlanError(
            f"the threshold is the class {value.__name__}",
            at=f"threshold={value.__name__}",
            why="a class has no settings yet",
            do=f"pass one of it: {value.__name__}(...)",
        )
    if isinstance(value, Threshold):
        return value
    return Scheduled(as_schedule(value, what="threshold"))


def value_at(schedule: Schedule, step: int, what: str, *, negative: bool) -> float:
    """Returns the value of a schedule at a step. Raises `PlanError` if it is not finite or must not be negative."""
    value = schedule(step)
    fine = fits(value, float) and math.isfinite(value)
    if not fine:
        raise PlanError(
            f"the {what} must be a finite number, not {value!r}",
            at=f"step {step}",
            why="activations are compared with it",
            do="pass a number, or a schedule that gives numbers",
        )
    if value < 0 and not negative:
        raise PlanError(
            f"the {what} must be at least 0, not {value!r}",
            at=f"step {step}",
            why="no magnitude is below it, so that nothing would ever go",
            do="use a larger one, or magnitude=False to compare signed values",
        )
    return float(value)


def share_at(schedule: Schedule, step: int) -> float:
    """Returns the target sparsity at a step. Raises `PlanError` if it is not in [0, 1)."""
    value = value_at(schedule, step, "sparsity", negative=True)
    if not 0 <= value < 1:
        raise PlanError(
            f"the sparsity must be in [0, 1), not {value!r}",
            at=f"step {step}",
            why="it is the share of the activations that become zero",
            do="pass a share such as 0.5",
        )
    return value


def sampled(values: Tensor, count: int) -> Tensor:
    """Returns at most `count` elements, flat, in a type that can be sorted: one from each of `count` equal parts.

    The position inside each part comes from Knuth's multiplicative hash and is always the same. Equal steps would take
    the same column or channel again and again, and random numbers would change the random state of the program.

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
