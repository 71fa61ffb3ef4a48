"""Dynamic network surgery (Guo et al. 2016): single weights are pruned, and may come back later."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxprune.arguments import checks_names, fits
from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.given_seeds import generator_of
from fxprune.schedules import Schedule, as_schedule
from fxprune.sparse.weights.mask import MaskedWeight, mask_weights
from fxprune.sparse.weights.pruner import CALLER, WeightPruner, loaded_steps, warn_of_empty
from fxprune.sparse.weights.targets import named_weights, per_target


def _finite(value: Any) -> bool:
    return fits(value, float) and math.isfinite(value)


@dataclass(frozen=True)
class InverseDecay:
    """sigma(n) = (1 + gamma * n) ^ -power: the probability that step n updates the masks; 1 at first, then decreasing.

    Form and default values are those of the authors' code (https://github.com/yiwenguo/Dynamic-Network-Surgery).

    >>> sigma = InverseDecay(gamma=0.5, power=1)
    >>> sigma(0), sigma(2)
    (1.0, 0.5)
    """

    gamma: float = 1e-4
    power: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("gamma", self.gamma), ("power", self.power)):
            if not _finite(value) or value < 0:
                raise PlanError(
                    f"{name} must be a number of at least 0, not {value!r}",
                    at=type(self).__name__,
                    why="the probability falls with the steps by it",
                    do=f"leave it out, or pass for example {name}=1.0",
                )

    def __call__(self, step: int) -> float:
        """Returns the probability at a step."""
        return float((1.0 + self.gamma * step) ** -self.power)


class DynamicSurgery(WeightPruner):
    """Prunes small weights and splices them back: pruned weights are trained on, and come back when they have grown.

        T[i] <- 0      where      |W[i]| < a
        T[i] <- T[i]   where a <= |W[i]| < b
        T[i] <- 1      where b <= |W[i]|

    The layer computes with W * T. The gradient with respect to W * T is applied to all of W, so that masked weights are
    trained too and can come back. Step n updates the masks T with probability sigma(n), which is 1 at first and does
    not grow. Guo, Yao and Chen 2016, "Dynamic Network Surgery for Efficient DNNs"
    (https://arxiv.org/abs/1608.04493).

    The thresholds of a layer follow the authors' code (https://github.com/yiwenguo/Dynamic-Network-Surgery), which
    takes mean and standard deviation over the non-zero weights once, at the start: (a, b) = band * max(mean(|W|) + rate
    * std(|W|), 0). Their code masks biases by the same thresholds; here a bias is masked only if `where` names it.

    Args:
        model: changed in place: its weights get masks that prune nothing until the first `step`.
        rate: the distance of the thresholds from the mean of |W|, in standard deviations; may be negative. Or a dict
            {pattern: rate}, see `fxprune.names`, where layers that no pattern names are not pruned.
        band: the factors of the lower and the upper threshold, 0 < lower <= upper.
        probability: sigma, a number in [0, 1] or a function of the step, counted from 0. With 1 the masks are updated
            at every step; a function that reaches 0 ends the updates.
        where: the weights to prune, see `fxprune.sparse.weights.targets.named_weights`.
        seed: the seed of the random numbers that are compared with sigma.

    thresholds: an attribute, name of the weight -> (a, b).

    Raises `PlanError` for arguments that make no sense, before the model is changed.

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

    @checks_names
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
            raise PlanError(
                f"band must be two numbers, not {band!r}",
                at=type(self).__name__,
                why="the lower threshold is the first times the mean, the upper the second",
                do="pass for example band=(0.9, 1.1)",
            )
        if not 0 < band[0] <= band[1]:
            raise PlanError(
                f"band must be 0 < lower <= upper, not {tuple(band)!r}",
                at=type(self).__name__,
                why="what lies between the thresholds stays as it is",
                do="pass for example band=(0.9, 1.1)",
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise PlanError(
                f"seed must be an integer of at least 0, not {seed!r}",
                at=type(self).__name__,
                why="the steps at which masks are looked at are drawn from it",
                do="pass 0, 1, 2, ...",
            )
        self._sigma = as_schedule(probability, what="probability")
        if _probability(self._sigma(0)) == 0:
            raise PlanError(
                "the probability is 0 at the first step",
                at=type(self).__name__,
                why="the masks would never be looked at",
                do="start at 1",
            )
        targets = named_weights(model, where)
        rates = per_target(model, rate, targets, "rate")
        targets = tuple(target for target in targets if target.name in rates)
        self.thresholds = {t.name: _thresholds(t.name, t.parameter.detach(), rates[t.name], band) for t in targets}
        self.model, self.steps = model, 0
        self._generator = generator_of(seed)
        self._weights = mask_weights(targets, splicing=True)

    @torch.no_grad()
    def step(self) -> None:
        """Updates the masks with probability sigma(n); changes nothing else. Call it once per training step.

        If it updates the masks, it warns with `NothingRemovedWarning` if no weight was or is masked, and with
        `UserWarning` if a layer has no weight left. Raises `PlanError` for a sigma outside [0, 1] and for NaN weights.
        """
        sigma = _probability(self._sigma(self.steps))
        self._refuse_nan()
        updates = float(torch.rand((), generator=self._generator)) < sigma
        self.steps += 1
        if not updates:
            return
        before = sum(weight.pruned for weight in self._weights.values())
        for name, weight in self._weights.items():
            weight.keep(_updated_mask(weight, *self.thresholds[name]))
        self._warn(before)

    def state_dict(self) -> dict[str, Any]:
        """Returns steps, thresholds and the random state; weights and masks are in the `state_dict` of the model."""
        return {
            "steps": self.steps,
            "thresholds": dict(self.thresholds),
            "generator": self._generator.get_state(),
        }

    @checks_names
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from the state of another `DynamicSurgery` with the same arguments."""
        steps = loaded_steps(state, ("steps", "thresholds", "generator"))
        if set(state["thresholds"]) != set(self.thresholds):
            raise PlanError(
                "the state is that of a surgery on other weights",
                at="DynamicSurgery.load_state_dict",
                why=f"it has {sorted(state['thresholds'])}, this one {sorted(self.thresholds)}",
                do="make the surgery with the arguments of the run that was saved",
            )
        self._generator.set_state(state["generator"])
        self.steps, self.thresholds = steps, {name: (a, b) for name, (a, b) in state["thresholds"].items()}

    def _warn(self, before: int) -> None:
        if not before and not any(weight.pruned for weight in self._weights.values()):
            warnings.warn(
                f"step {self.steps - 1} pruned nothing: no weight lies below its threshold; raise rate",
                NothingRemovedWarning,
                stacklevel=CALLER,
            )
        warn_of_empty(self._weights)


def _updated_mask(weight: MaskedWeight, low: float, high: float) -> torch.Tensor:
    size = weight.dense.abs()
    return (weight.mask & (size >= low)) | (size >= high)


def _thresholds(name: str, values: torch.Tensor, rate: Any, band: tuple[float, float]) -> tuple[float, float]:
    if not _finite(rate):
        raise PlanError(
            f"rate must be a finite number, not {rate!r}",
            at=f'"{name}"',
            why="the threshold is the mean of |weight| plus rate times its deviation",
            do="pass for example rate=0.5",
        )
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
        raise PlanError(
            f"probability must be a number in [0, 1], not {value!r}",
            at="probability",
            why="it is the chance that the masks are looked at in a step",
            do="pass 1.0, or a schedule that gives such numbers",
        )
    return float(value)
