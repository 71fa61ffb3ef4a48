"""Dynamic network surgery (Guo et al. 2016): single weights are pruned, and spliced back where that was a mistake."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.schedules import Schedule, as_schedule
from fxprune.sparse.weights.mask import MaskedWeight, mask_weights
from fxprune.sparse.weights.pruner import CALLER, WeightPruner, loaded_steps, warn_of_empty
from fxprune.sparse.weights.targets import named_weights, per_target


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class InverseDecay:
    """sigma(n) = (1 + gamma * n) ^ -power: 1 at first, then ever smaller; how likely step n looks at the masks.

    The form and the values of the authors' code (https://github.com/yiwenguo/Dynamic-Network-Surgery).

    >>> sigma = InverseDecay(gamma=0.5, power=1)
    >>> sigma(0), sigma(2)
    (1.0, 0.5)
    """

    gamma: float = 1e-4
    power: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("power", self.power)):
            if not _finite(value) or value < 0:
                raise PlanError(f"{name} must be a number of at least 0, not {value!r}", at=type(self).__name__)

    def __call__(self, step: int) -> float:
        """The probability at a step."""
        return float((1.0 + self.gamma * step) ** -self.power)


class DynamicSurgery(WeightPruner):
    """Pruning with splicing: what was pruned goes on learning, and comes back when it has grown.

        T[i] <- 0      where      |W[i]| < a
        T[i] <- T[i]   where a <= |W[i]| < b
        T[i] <- 1      where b <= |W[i]|

    The layer computes with W * T; the gradient with respect to W * T is applied to all of W, masked or not, so that
    W stays dense and a pruned weight can return. The masks T are looked at again with probability sigma(n), which is
    1 at first and does not grow. Guo, Yao and Chen 2016, "Dynamic Network Surgery for Efficient DNNs"
    (https://arxiv.org/abs/1608.04493).

    The thresholds of a layer follow the authors' code (https://github.com/yiwenguo/Dynamic-Network-Surgery), which
    takes mean and standard deviation over the non-zero weights once, at the start: (a, b) = band * max(mean(|W|) + rate
    * std(|W|), 0). Their code masks biases by the same thresholds; here only those named in `where` are.

    Args:
        model: changed in place: its weights get masks, all open until the first `step`.
        rate: how many standard deviations above the mean of |W| the thresholds lie, may be negative; or {pattern:
            rate}, where layers that no pattern names stay dense (see `fxprune.names`).
        band: the factors of the lower and the upper threshold, 0 < lower <= upper.
        probability: sigma: a number or a function of the step, counted from 0, to [0, 1]. A constant 1 looks at the
            masks at every step; a function that reaches 0 stops the surgery.
        where: the weights that are meant: see `fxprune.sparse.weights.targets.named_weights`.
        seed: of the draws against sigma.

    thresholds: by the name of the weight (a, b).

    Raises `PlanError` for requests that cannot be meant, before the model is changed.

    >>> import torch
    >>> layer = torch.nn.Linear(4, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[0.1, 3.0, 1.0, -4.0]]))
    >>> surgery = DynamicSurgery(layer, rate=0.0, probability=1.0)
    >>> {name: tuple(round(t, 4) for t in both) for name, both in surgery.thresholds.items()}  # mean 2.025
    {'weight': (1.8225, 2.2275)}
    >>> surgery.step()
    >>> layer.weight.detach()
    tensor([[ 0.,  3.,  0., -4.]])
    >>> layer(torch.ones(1, 4)).backward()  # reaches the pruned weights too
    >>> layer.parametrizations.weight.original.grad
    tensor([[1., 1., 1., 1.]])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rate: float | Mapping[str, float],
        band: tuple[float, float] = (0.9, 1.1),
        probability: float | Schedule = InverseDecay(),
        where: Any = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(band, (tuple, list)) or len(band) != 2 or not all(map(_finite, band)):
            raise PlanError(f"band must be two numbers, not {band!r}")
        if not 0 < band[0] <= band[1]:
            raise PlanError(f"band must be 0 < lower <= upper, not {tuple(band)!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise PlanError(f"seed must be an integer of at least 0, not {seed!r}")
        self._sigma = as_schedule(probability, what="probability")
        if _probability(self._sigma(0)) == 0:
            raise PlanError(
                "the probability is 0 at the first step", why="the masks would never be looked at", do="start at 1"
            )
        targets = named_weights(model, where)
        rates = per_target(model, rate, targets, "rate")
        targets = tuple(target for target in targets if target.name in rates)
        self.thresholds = {t.name: _thresholds(t.name, t.parameter.detach(), rates[t.name], band) for t in targets}
        self.model, self.steps = model, 0
        self._generator = torch.Generator().manual_seed(seed)
        self._weights = mask_weights(targets, splicing=True)

    @torch.no_grad()
    def step(self) -> None:
        """With probability sigma(n), prune and splice; call it once per training step. Changes the masks only.

        Warns with `NothingRemovedWarning` where it looked, nothing was masked and nothing is, and with `UserWarning`
        where a layer has no weight left. Raises `PlanError` for a sigma outside [0, 1] and for weights that are NaN.
        """
        sigma = _probability(self._sigma(self.steps))
        self._refuse_nan()
        looks = float(torch.rand((), generator=self._generator)) < sigma
        self.steps += 1
        if not looks:
            return
        before = sum(weight.pruned for weight in self._weights.values())
        for name, weight in self._weights.items():
            weight.keep(_looked_at(weight, *self.thresholds[name]))
        self._warn(before)

    def state_dict(self) -> dict[str, Any]:
        """Steps, thresholds and the state of the draws; weights and masks are part of the model's own state."""
        return {
            "steps": self.steps,
            "thresholds": dict(self.thresholds),
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another surgery of the same arguments was."""
        steps = loaded_steps(state, ("steps", "thresholds", "generator"))
        if set(state["thresholds"]) != set(self.thresholds):
            raise PlanError(
                "the state is that of a surgery on other weights",
                why=f"it has {sorted(state['thresholds'])}, this one {sorted(self.thresholds)}",
            )
        self._generator.set_state(state["generator"])
        self.steps, self.thresholds = steps, {name: (a, b) for name, (a, b) in state["thresholds"].items()}

    def _warn(self, before: int) -> None:
        if not before and not any(weight.pruned for weight in self._weights.values()):
            warnings.warn(
                f"step {self.steps - 1} pruned nothing: no weight lies below its threshold",
                NothingRemovedWarning,
                stacklevel=CALLER,
            )
        warn_of_empty(self._weights)


def _looked_at(weight: MaskedWeight, low: float, high: float) -> torch.Tensor:
    size = weight.dense.abs()
    return (weight.mask & (size >= low)) | (size >= high)


def _thresholds(name: str, values: torch.Tensor, rate: Any, band: tuple[float, float]) -> tuple[float, float]:
    if not _finite(rate):
        raise PlanError(f"rate must be a finite number, not {rate!r}", at=f'"{name}"')
    size = values.abs().to(torch.float64)
    size = size[size > 0]
    middle = float(size.mean() + rate * size.std(correction=0)) if len(size) else 0.0
    if middle <= 0:
        raise PlanError(
            "the threshold is not above 0",
            at=f'"{name}"',
            why="no weight lies under it: the mean of |weight| plus rate times its deviation is "
            f"{middle:.3g} at a rate of {rate}",
            do="raise the rate, or leave the layer out of `where`",
        )
    return band[0] * middle, band[1] * middle


def _probability(value: Any) -> float:
    if not _finite(value) or not 0 <= value <= 1:
        raise PlanError(f"probability must be a number in [0, 1], not {value!r}")
    return float(value)
