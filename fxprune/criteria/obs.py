"""Optimal brain surgery on channels: those go that all layers which read them can best do without."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.analysis.findings import Group
from fxprune.criteria.losses import Loss
from fxprune.criteria.reading import ReadBlock, Readings, readings_of
from fxprune.criteria.table import measured
from fxprune.errors import PlanError
from fxprune.running.processes import Processes


@dataclass(frozen=True, eq=False)
class SurgeonImportance:
    """The order in which channels go, and what each costs after the others that read the layer have made up for it.

    With W the weight of a layer that reads a group, H the second moments of what it reads, S the inputs of the removed
    channels, the other weights are changed so that the outputs change least. The error that is left is

        E(S) = sum over readers, over outputs o, of f[o] * W[o, S] (H^-1[S, S])^-1 W[o, S]^T

    The next channel is always the one that increases E least, with W and H^-1 as the removals before have left them.
    """

    readings: Readings = field(repr=False)
    ridge: float
    _known: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def __call__(self, group: Group) -> Tensor:
        """One score per channel, float64 [group.size]: the increase of E, at least that of the channels before it.

        Raises `PlanError` for a group that no layer was seen reading.
        """
        order, increases = self._removal(group)
        rising = np.maximum.accumulate(increases.numpy())
        for step in range(1, len(rising)):  # equal scores would be ranked by position
            rising[step] = max(rising[step], np.nextafter(rising[step - 1], np.inf))
        scores = torch.empty(group.size, dtype=torch.float64)
        scores[order] = torch.from_numpy(rising)
        return scores

    def curve(self, group: Group) -> Tensor:
        """E after 0, 1, ... channels of the group are removed in their order, float64 [group.size + 1].

        A share of the outputs, averaged over the readers; with a loss, in units of it. Errors of several groups add up
        only as long as little is removed.
        """
        _, increases = self._removal(group)
        return torch.cat([torch.zeros(1, dtype=torch.float64), increases.cumsum(0)])

    def order(self, group: Group) -> Tensor:
        """The channels of the group in the order in which they go."""
        return self._removal(group)[0]

    def _removal(self, group: Group) -> tuple[Tensor, Tensor]:
        """The order of a group's channels, and the increase of E at each."""
        members = {(m.parameter, m.dim): m for m in group.members}
        key = tuple((name, dim, m.slots.tobytes(), m.index.tobytes()) for (name, dim), m in members.items())
        if key not in self._known:
            readers: list[_Reader] = []
            read = [r for r in self.readings.blocks.values() if (r.name, r.dim) in members]
            for reading in read:
                member = members[reading.name, reading.dim]
                channel = torch.full((member.tensor.shape[member.dim],), -1)
                channel[torch.from_numpy(member.slots)] = torch.from_numpy(member.index)
                if reading.slots.max() < len(channel):
                    weights = self._outputs(reading) / (1 if self.readings.informed else len(read))
                    readers += _readers(reading, weights, channel, group.size, self.ridge)
            if not readers:
                raise PlanError(
                    f'nothing was seen reading group "{group.name}" ({group.kind})',
                    why="no product with a weight reads its channels in the batches that were run",
                    do="leave it out with ignore, or choose another importance",
                )
            self._known[key] = _removed(readers, group.size)
        return self._known[key]

    def _outputs(self, reading: ReadBlock) -> Tensor:
        """The weights f of the outputs, [g, o]."""
        if self.readings.informed:
            share = reading.outputs / reading.outputs.sum(1, keepdim=True).clamp(min=_TINY)
            return share / (2 * max(self.readings.samples, 1))
        energy: Tensor = (reading.weight @ reading.centred * reading.weight).sum()
        return torch.ones_like(reading.outputs) / energy.clamp(min=_TINY)


_TINY = torch.finfo(torch.float64).tiny


@dataclass
class _Reader:
    """One block that reads the group: k inputs, o outputs, m inputs of each channel at most.

    weight: [o, k]. inverse: H^-1, [k, k]. outputs: f, [o]. columns: the inputs of each channel, [channels, m]; where a
    channel has fewer, inputs with a weight of zero that depend on nothing.
    """

    weight: Tensor
    inverse: Tensor
    outputs: Tensor
    columns: Tensor

    def costs(self, channels: Tensor) -> Tensor:
        """The increase of E if one of these channels goes, [channels]."""
        columns = self.columns[channels]
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        weights = self.weight[:, columns].permute(1, 2, 0)  # [channels, m, o]
        solved = torch.linalg.solve_triangular(torch.linalg.cholesky(blocks), weights, upper=False)
        costs: Tensor = (solved.square() * self.outputs).sum((1, 2))
        return costs

    def remove(self, channel: int) -> None:
        """Remove a channel; the other inputs make up for it."""
        columns = self.columns[channel]
        crossing = self.inverse[:, columns]  # [k, m]
        gain = torch.cholesky_solve(crossing.mT, torch.linalg.cholesky(crossing[columns])).mT
        self.weight -= self.weight[:, columns] @ gain.mT
        self.inverse -= gain @ crossing.mT
        self.weight[:, columns] = 0
        self.inverse[columns] = 0
        self.inverse[:, columns] = 0
        self.inverse[columns, columns] = 1


def _readers(reading: ReadBlock, outputs: Tensor, channel: Tensor, size: int, ridge: float) -> list[_Reader]:
    """The blocks of a reading. channel: for each slot of its dimension the channel of the group, -1 for none."""
    found = []
    for slots, weight, moments, weights in zip(reading.slots, reading.weight, reading.centred, outputs, strict=True):
        owner = channel[slots]  # [k]
        inputs = torch.arange(len(owner))[owner >= 0]
        counts = torch.bincount(owner[inputs], minlength=size)
        most = int(counts.max())
        if not most:
            continue
        count = len(owner)
        columns = (count + torch.arange(most)).repeat(size, 1)
        ordered = inputs[torch.argsort(owner[inputs], stable=True)]
        places = torch.arange(len(ordered)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        columns[owner[ordered], places] = ordered
        whole = torch.eye(count + most, dtype=torch.float64)
        mean = moments.diagonal().mean().clamp(min=_TINY)
        whole[:count, :count] = torch.linalg.inv(moments + ridge * mean * torch.eye(count, dtype=torch.float64))
        padded = torch.cat([weight, weight.new_zeros(len(weight), most)], 1)
        found.append(_Reader(padded, (whole + whole.mT) / 2, weights, columns))
    return found


def _removed(readers: list[_Reader], size: int) -> tuple[Tensor, Tensor]:
    """The channels in the order in which the greedy search removes them, and the increase of E at each step."""
    left = torch.arange(size)
    order, increases = [], []
    for _ in range(size):
        costs = torch.stack([reader.costs(left) for reader in readers]).sum(0)
        best = int(costs.argmin())
        chosen = int(left[best])
        order.append(chosen)
        increases.append(float(costs[best]))
        for reader in readers:
            reader.remove(chosen)
        left = left[left != chosen]
    return torch.tensor(order), torch.tensor(increases, dtype=torch.float64)


@measured("obs")
def obs_importance(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    ridge: float = 0.01,
    progress: bool = False,
    process_group: Any = None,
) -> SurgeonImportance:
    """Greedy optimal brain surgery on the channels of a group, with compensation in all layers that read them.

    Hassibi and Stork 1992, "Second order derivatives for network pruning: Optimal Brain Surgeon"; layer by layer
    Frantar and Alistarh 2022, "Optimal Brain Compression" (https://arxiv.org/abs/2208.11580); on structures Kurtic et
    al. 2023, "ZipLM" (https://arxiv.org/abs/2302.04089). See `SurgeonImportance` for the formula. A repair makes up for
    the channels in the way that is reckoned with here, so that the two fit each other.

    Without a loss the error is that of the outputs of each reader, relative to their size. With one, rows and outputs
    are weighed by the squared gradients of the loss of a sample (the Fisher information), so that E is in units of the
    loss. Scores of different groups do not compare: where much is removed, errors of layers do not add up.

    Holds for each layer a matrix of (inputs times kernel) squared in float64: 170 MB for 512 channels and 3 x 3.

    Args:
        model: the one that will be pruned. It runs in evaluation mode, once per batch.
        batches: what one call of the model takes each, in the form of `example_inputs`; with a loss what that takes.
        loss: a function from the model and a batch to the mean loss of its samples.
        ridge: added to the second moments, as a share of their mean.
        progress, process_group: as in `fxprune.criteria.taylor_importance`.

    Raises `PlanError` for a ridge that is not positive, `InputError` for batches that do not fit, and for NaN.

    >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1))
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.5]]))
    ...     _ = net[1].weight.fill_(1.0)
    >>> importance = obs_importance(net, [torch.randn(50, 2)], ridge=1e-6)
    >>> import fxprune
    >>> group = fxprune.analyze(net, torch.zeros(1, 2)).groups[0]
    >>> importance.order(group).tolist()[0] in (0, 1)  # the other one of two equal channels makes up for it
    True
    >>> bool(importance.curve(group)[1] < 1e-4)
    True
    """
    if isinstance(ridge, bool) or not isinstance(ridge, (int, float)) or not 0 < ridge < float("inf"):
        raise PlanError(f"ridge must be a positive number, not {ridge!r}")
    found = readings_of(model, batches, loss=loss, progress=progress, processes=Processes(process_group))
    return SurgeonImportance(found, float(ridge))
