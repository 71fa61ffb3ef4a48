"""Penalties on channels: all elements that are removed with a channel count together."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune._analyze import Analysis, analyze
from fxprune.analysis.findings import Group
from fxprune.analysis.members import Member
from fxprune.arguments import checks_names, fits, shown
from fxprune.errors import PlanError, nearest
from fxprune.regularizers.base import Regularizer, squared
from fxprune.schedules import Schedule
from fxprune.sharded import is_sharded


class _OverChannels(Regularizer):
    """A penalty that knows the groups of a model. It analyses the model again when it has got smaller."""

    def __init__(self, model: nn.Module, example_inputs: Any, strength: float | Schedule, options: Any) -> None:
        super().__init__(model, strength)
        known = inspect.signature(analyze).parameters
        wrong = next((name for name in options if name not in known), None)
        if wrong is not None:
            why = nearest(wrong, sorted(known))
            at, do = f"{type(self).__name__}({wrong}={shown(options[wrong])})", "take one of fxprune.analyze"
            raise PlanError(f"{type(self).__name__} has no option {wrong}", at=at, why=why, do=do)
        self.example_inputs = example_inputs
        self.options: Mapping[str, Any] = options
        if is_sharded(model):
            raise PlanError(
                "a penalty on channels cannot be computed of a sharded model",
                at=type(self).__name__,
                why="the elements of a channel are in several weights, each on several processes",
                do="train with it before fully_shard is applied, or take L1 or BatchNormL1",
            )
        self._analysis = self._analyzed()
        if not self.parameters():
            raise PlanError(
                "the model has no channels that a penalty could make small",
                at=type(self).__name__,
                why=f"no group of {type(model).__name__} has a parameter: see fxprune.analyze(model, example_inputs)",
                do="take L1, which counts single weights",
            )

    def _analyzed(self) -> Analysis:
        prefer = {} if isinstance(self.model, fx.GraphModule) or "path" in self.options else {"prefer": "class"}
        return analyze(self.model, self.example_inputs, **{**prefer, **self.options})

    def groups(self) -> tuple[Group, ...]:
        """Returns the groups of the model as it is now."""
        now = dict(self.model.named_parameters(remove_duplicate=False))
        known = self._analysis.tensors
        if any(name in known and known[name] is not parameter for name, parameter in now.items()):
            self._analysis = self._analyzed()
        return self._analysis.groups

    def parameters(self) -> list[nn.Parameter]:
        """Returns the parameters in which groups have slots."""
        return [m.tensor for group in self.groups() for m in group.members if isinstance(m.tensor, nn.Parameter)]

    def squares(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Returns for each group the sum of squares of each channel, and its number of elements."""
        for group in self.groups():
            members = [m for m in group.members if isinstance(m.tensor, nn.Parameter)]
            if members:
                sums = [_per_channel(m, squared(m.tensor)) for m in members]
                counts = [_per_channel(m, torch.ones_like(m.tensor.real)) for m in members]
                yield torch.stack(sums).sum(0), torch.stack(counts).sum(0)


def _per_channel(member: Member, values: torch.Tensor) -> torch.Tensor:
    """The sum of the elements that belong to each channel, with gradients."""
    rows = values.movedim(member.dim, 0)
    return member.per_channel(rows.flatten(1).sum(1) if rows.ndim > 1 else rows)


class GroupLasso(_OverChannels):
    """The sum over all channels of sqrt(n) |w|, where w are the n elements that are removed with a channel.

    Yuan and Lin 2006, equation 2.2, with the channels of a group, as they depend on each other, for the groups of the
    paper (https://doi.org/10.1111/j.1467-9868.2005.00532.x); Wen et al. 2016 for networks
    (https://arxiv.org/abs/1608.03665).

    An element that belongs to a channel in two dimensions, such as the diagonal of a layer that reads what it adds to,
    counts in both, as in DepGraph, whose groups list inputs and outputs of a layer separately (Fang et al. 2023,
    section 3.2). It does so in `GroupSparsity` and in the importance "l2" too.

    Args:
        model, strength: see `Regularizer`.
        example_inputs: as for `fxprune.analyze`.
        options: further options of `fxprune.analyze`.

    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0], [0.0]])), net[2].weight.data.copy_(torch.tensor([[4.0, 1.0]]))
    >>> round(GroupLasso(net, torch.ones(1, 1), 1.0)().item(), 4), round(2**0.5 * (5 + 1), 4)
    (8.4853, 8.4853)
    """

    @checks_names
    def __init__(self, model: nn.Module, example_inputs: Any, strength: float | Schedule, **options: Any) -> None:
        super().__init__(model, example_inputs, strength, options)

    def penalty(self) -> torch.Tensor:
        """Returns the sum; a channel that is zero has no gradient."""
        terms = []
        for squares, counts in self.squares():
            some = squares > 0
            norms = torch.where(some, squares, 1.0).sqrt() * some
            terms.append((counts.sqrt() * norms).sum())
        return torch.stack(terms).sum() if terms else torch.zeros(())


class GroupSparsity(_OverChannels):
    """The sum over all channels of gamma |w|^2, where less important channels have a larger gamma.

    gamma = 2^(alpha (I_max - I) / (I_max - I_min)), with I = |w|^2 of the channel, over all elements that are removed
    with it, and the largest and smallest I of its group (Fang et al. 2023, "DepGraph", equation 4,
    https://arxiv.org/abs/2301.12900). gamma is taken as a constant: it has no gradient.

    Args:
        model, strength: see `Regularizer`.
        example_inputs: as for `fxprune.analyze`.
        alpha: the exponent, 4 in the paper.
        options: further options of `fxprune.analyze`.
    """

    @checks_names
    def __init__(
        self, model: nn.Module, example_inputs: Any, strength: float | Schedule, *, alpha: float = 4.0, **options: Any
    ) -> None:
        super().__init__(model, example_inputs, strength, options)
        if not fits(alpha, float) or not math.isfinite(alpha) or alpha < 0:
            raise PlanError(
                "alpha must be a finite number of at least 0",
                at=f"GroupSparsity(alpha={shown(alpha)})",
                why="below 0 it would make important channels small, and keep the others",
                do="take 4, as the paper does",
            )
        self.alpha = alpha

    def penalty(self) -> torch.Tensor:
        """Returns the sum."""
        terms = []
        for squares, _ in self.squares():
            known = squares.detach()
            most, least = known.max(), known.min()
            spread = torch.where(most > least, most - least, torch.ones_like(most))
            gamma = torch.pow(2.0, self.alpha * (most - known) / spread)
            terms.append((gamma * squares).sum())
        return torch.stack(terms).sum() if terms else torch.zeros(())
