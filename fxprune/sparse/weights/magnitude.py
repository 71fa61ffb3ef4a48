"""Magnitude pruning of single weights (Han et al. 2015): the smallest are pruned while the others are trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxprune.arguments import checks_names, fits
from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.schedules import Constant, Schedule, as_schedule
from fxprune.sparse.weights.mask import MaskedWeight, mask_weights
from fxprune.sparse.weights.pruner import CALLER, WeightPruner, loaded_steps, warn_of_empty
from fxprune.sparse.weights.targets import named_weights, per_target

SCOPES = ("layer", "global")


class MagnitudePruner(WeightPruner):
    """Prunes the smallest weights step by step, with training in between.

        mask[i] = 0 for the floor(sparsity * n) weights of smallest |w|, and for all that were 0 before
        mask[i] = 0 where |w[i]| < quality * std(w), for `quality` instead of `sparsity`

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks"
    (https://arxiv.org/abs/1506.02626), take the threshold of a layer as a quality parameter times the standard
    deviation of its weights. Pruned weights stay pruned; the others keep their values.

    The masks are parametrizations (`WeightMask`) with bool buffers: `layer.weight` is exactly zero where a weight is
    pruned, under any optimizer. The parameters stay the same objects. `model.state_dict()` holds the masks.

    Args:
        model: changed in place: its weights get masks that prune nothing until the first `step`.
        sparsity: the share of zeros in [0, 1), per layer or over all layers (see `scope`). Either a number, or a
            schedule, whose value `schedule(n)` is used by the n-th call of `step`, counted from 0; or a dict {pattern:
            number or schedule}, where layers that no pattern names are not pruned.
        quality: used instead of sparsity: the threshold divided by the standard deviation, above 0; a number, a
            schedule or a dict as above. The deviation is taken over the weights that are not pruned.
        scope: "layer" ranks the weights of each layer separately, "global" those of all layers together.
        where: the weights to prune, see `fxprune.sparse.weights.targets.named_weights`; by default no biases and norms.

    Raises `PlanError` for arguments that make no sense, before the model is changed.

    >>> import torch
    >>> from fxprune.schedules import Linear
    >>> layer = torch.nn.Linear(4, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[0.3, -0.1, 2.0, -0.2]]))
    >>> pruner = MagnitudePruner(layer, sparsity=Linear(0.25, 0.5, steps=1))
    >>> pruner.step()
    >>> layer.weight.detach()
    tensor([[ 0.3000,  0.0000,  2.0000, -0.2000]])
    >>> pruner.step()
    >>> layer.weight.detach(), pruner.sparsities
    (tensor([[0.3000, 0.0000, 2.0000, 0.0000]]), {'weight': 0.5})
    >>> pruner.squash()
    Linear(in_features=4, out_features=1, bias=True)
    """

    @checks_names
    def __init__(
        self,
        model: nn.Module,
        *,
        sparsity: float | Schedule | Mapping[str, Any] | None = None,
        quality: float | Schedule | Mapping[str, Any] | None = None,
        scope: str = "layer",
        where: Any = None,
    ) -> None:
        if (sparsity is None) == (quality is None):
            raise PlanError(
                "say how much goes: exactly one of sparsity and quality",
                at=type(self).__name__,
                why=f"sparsity={sparsity!r}, quality={quality!r}",
                do="pass for example sparsity=0.5",
            )
        if scope not in SCOPES:
            raise PlanError(
                f"there is no scope {scope!r}",
                at=f"scope={scope!r}",
                why="weights are ranked in each layer, or all together",
                do='pass "layer" or "global"',
            )
        self._what = "sparsity" if quality is None else "quality"
        if scope == "global" and (quality is not None or isinstance(sparsity, Mapping)):
            given = "a quality" if quality is not None else "a sparsity per layer"
            raise PlanError(
                f'{given} and scope="global" contradict each other',
                at=type(self).__name__,
                why="the first says for every layer what is pruned, the second ranks all layers together",
                do="pass one number or schedule as sparsity, or leave the scope out",
            )
        targets = named_weights(model, where)
        asked = per_target(model, sparsity if quality is None else quality, targets, self._what)
        self._schedules = {name: as_schedule(value, what=self._what) for name, value in asked.items()}
        for schedule in self._schedules.values():
            if isinstance(schedule, Constant):
                _checked(schedule.value, self._what)
                if schedule.value == 0:
                    raise PlanError(
                        f"a {self._what} of 0 prunes nothing",
                        at=type(self).__name__,
                        why="no weight is below it",
                        do="pass a number above 0, or a schedule",
                    )
        self.model, self.scope, self.steps = model, scope, 0
        self._weights = mask_weights(tuple(t for t in targets if t.name in self._schedules), splicing=False)

    @torch.no_grad()
    def step(self) -> None:
        """Prunes to the schedule's value for this call. Changes only the masks.

        Warns with `NothingRemovedWarning` if no further weight is pruned although the value is above 0, and with
        `UserWarning` if a layer has no weight left. Raises `PlanError`, before any change, for an invalid sparsity or
        quality and for weights that are NaN.
        """
        asked = {name: _checked(s(self.steps), self._what) for name, s in self._schedules.items()}
        self._refuse_nan()
        before = sum(w.pruned for w in self._weights.values())
        for name, mask in self._new_masks(asked).items():
            self._weights[name].keep(mask)
        self.steps += 1
        self._warn(asked, before)

    def state_dict(self) -> dict[str, int]:
        """Returns the number of steps; the masks are in the `state_dict` of the model."""
        return {"steps": self.steps}

    @checks_names
    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues from the state of another pruner with the same arguments."""
        self.steps = loaded_steps(state, ("steps",))

    def _new_masks(self, asked: dict[str, float]) -> dict[str, torch.Tensor]:
        if self._what == "quality":
            return {name: _above_threshold(self._weights[name], value) for name, value in asked.items()}
        ranked = {name: _scores(weight) for name, weight in self._weights.items()}
        if self.scope == "layer":
            kept = {name: ~smallest(scores, _number_to_prune(asked[name], scores)) for name, scores in ranked.items()}
        else:
            place = next(iter(ranked.values())).device
            dtype = max((s.dtype for s in ranked.values()), key=lambda d: torch.finfo(d).bits)
            every = torch.cat([scores.to(place, dtype) for scores in ranked.values()])
            gone = smallest(every, _number_to_prune(next(iter(asked.values())), every))
            pieces = torch.split(~gone, [len(scores) for scores in ranked.values()])
            kept = {name: piece.to(ranked[name].device) for name, piece in zip(ranked, pieces, strict=True)}
        return {name: self._weights[name].mask & mask.view_as(self._weights[name].mask) for name, mask in kept.items()}

    def _warn(self, asked: dict[str, float], before: int) -> None:
        largest = max(asked.values())
        if sum(w.pruned for w in self._weights.values()) == before and largest > 0:
            why = (
                f"{before} weights are pruned already, and a {self._what} of {largest:g} asks for no more"
                if before
                else f"a {self._what} of {largest:g} leaves every weight"
            )
            text = f"step {self.steps - 1} pruned nothing: {why}; raise the {self._what}, or take fewer steps"
            warnings.warn(text, NothingRemovedWarning, stacklevel=CALLER)
        warn_of_empty(self._weights)


def smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Returns bool [n]: True for the `count` smallest of the scores [n]; among equal ones, for the first.

    >>> import torch
    >>> smallest(torch.tensor([3.0, 1.0, 1.0, 0.5]), 2)
    tensor([False,  True, False,  True])
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count).values
    chosen = scores < threshold
    equal = (scores == threshold).nonzero().squeeze(-1)
    chosen[equal[: count - int(chosen.count_nonzero())]] = True
    return chosen


def _scores(weight: MaskedWeight) -> torch.Tensor:
    """Returns |w| as a flat vector, with -1 for pruned weights, so that they rank lowest and stay pruned."""
    values = weight.dense.abs()
    values = values.to(torch.promote_types(values.dtype, torch.float32))  # there is no kthvalue of half precision
    return torch.where(weight.mask, values, -1.0).flatten()


def _number_to_prune(sparsity: float, scores: torch.Tensor) -> int:
    return int(sparsity * len(scores) + 1e-9)


def _above_threshold(weight: MaskedWeight, quality: float) -> torch.Tensor:
    left = weight.dense[weight.mask]
    left = left.to(torch.promote_types(left.dtype, torch.float32))
    if not len(left):
        return weight.mask
    return weight.mask & (weight.dense.abs() >= quality * left.std(correction=0))


def _checked(value: Any, what: str) -> float:
    number = fits(value, float) and math.isfinite(value)
    if not number or value < 0 or (what == "sparsity" and value >= 1):
        bounds = "in [0, 1)" if what == "sparsity" else "of at least 0"
        raise PlanError(
            f"{what} must be a number {bounds}, not {value!r}",
            at=f"{what}={value!r}",
            why="it says how many weights go",
            do=f"pass for example {what}=0.5",
        )
    return float(value)
