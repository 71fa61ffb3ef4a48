"""ThiNet (Luo et al. 2017): channels are ranked by how well the next layer's output is kept without them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fxprune.analysis.findings import Group
from fxprune.analysis.members import Member
from fxprune.arguments import checks_arguments
from fxprune.criteria.contributions import Contributions, sample_contributions
from fxprune.criteria.table import measured
from fxprune.errors import PlanError


@dataclass(frozen=True, eq=False)
class ThiNetImportance:
    """The order in which the greedy algorithm of ThiNet removes a group's channels: 0 is the first.

    The set T of removed channels is to minimise the squared error of the next layer's sampled outputs,

        E(T) = sum over samples m of (sum over j in T of x[m, j])^2,    x[m, j]: what channel j adds to output m

    and grows by the channel that increases E least. Luo, Wu and Lin 2017, "ThiNet: A Filter Level Pruning Method for
    Deep Neural Network Compression" (https://arxiv.org/abs/1707.06342). Errors of several consumers (a residual
    stream) are added. The orders are nested, so that one ranking serves every ratio; scores of different groups do
    not compare.

    Pass it as `importance`. Raises `PlanError` for a group that no convolution or linear layer reads.
    """

    contributions: Contributions

    def __call__(self, group: Group) -> torch.Tensor:
        """One score per channel of the group, float64 [group.size]."""
        gram = torch.zeros(group.size, group.size, dtype=torch.float64)
        for parts in self.parts(group):
            gram += (parts.T @ parts).cpu()
        scores = torch.empty(group.size, dtype=torch.float64)
        scores[torch.from_numpy(removal_order(gram.numpy()))] = torch.arange(group.size, dtype=torch.float64)
        return scores

    def parts(self, group: Group) -> list[torch.Tensor]:
        """By reading layer, the terms of each channel in m sampled outputs, float64 [m, group.size]."""
        known = {id(p) for p in self.contributions.model.parameters()}
        found, missed = [], []
        for member in group.members:
            if isinstance(member.tensor, nn.Parameter) and id(member.tensor) not in known:
                raise PlanError(
                    "this ThiNet importance was made from another model",
                    at=f'"{member.parameter}"',
                    why="what it sampled are other weights",
                    do="call `thinet_importance` with the model that is to be pruned",
                )
            sampled = self.contributions.of(member.tensor) if member.dim == 1 else None
            if sampled is not None:
                found.append(_per_channel(member, sampled.parts, group.size))
            elif _reads(group, member):
                missed.append(f'"{member.parameter}"')
        if not found:
            raise PlanError(
                f'ThiNet cannot rank group "{group.name}" ({group.kind})',
                why="no convolution or linear layer was seen reading its channels"
                + (f"; {', '.join(missed)} cannot be sampled" if missed else ""),
                do='leave it out: ignore it, or give the ratio as {"name of a group": share} for the others',
            )
        if missed:
            warnings.warn(
                f'ThiNet ranks group "{group.name}" without {", ".join(missed)}, which read it too: only '
                "convolutions that are called as modules and products with a matrix can be sampled. "
                "Ignore the group, or rank it by another importance, if these decide",
                UserWarning,
                stacklevel=2,
            )
        return found


@measured("thinet")
@checks_arguments("progress")
def thinet_importance(
    model: nn.Module, loader: Iterable[Any], *, samples: int = 10, seed: int = 0, progress: bool = True
) -> ThiNetImportance:
    """The importance of ThiNet, for `fxprune.transform(model, x, ratio=..., importance=thinet_importance(model, ...))`.

    Luo, Wu and Lin 2017 (https://arxiv.org/abs/1707.06342); see `ThiNetImportance`. Args are
    those of `fxprune.criteria.sample_contributions`. Runs the model once per batch.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(2, 1)).eval()
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[9.0, 9.0, 9.0], [1.0, 1.0, 1.0]]))
    ...     _ = net[1].weight.copy_(torch.tensor([[0.01, 1.0]]))
    >>> x = torch.ones(4, 3)  # the first channel is larger, and adds less
    >>> fxprune.analyze(net, x).plan(ratio=0.5, importance=thinet_importance(net, [x])).removed["0.weight"]
    {0: [0]}
    """
    return ThiNetImportance(sample_contributions(model, loader, samples=samples, seed=seed, progress=progress))


def removal_order(gram: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The channels in the order in which the greedy algorithm removes them; of equal ones the first comes first.

    gram: [c, c], gram[i, j] = sum over samples of x[m, i] * x[m, j]. With T the removed channels,

        E(T + j) - E(T) = gram[j, j] + 2 * sum over i in T of gram[i, j]

    so that one step costs c additions, and all of them c^2.

    >>> import numpy as np
    >>> x = np.array([[1.0, -1.1, 0.5]])  # 0.5 is removed first, then -1.1 cancels most of it
    >>> removal_order(x.T @ x).tolist()
    [2, 1, 0]
    """
    size = len(gram)
    increase = gram.diagonal().copy()
    order = np.empty(size, dtype=np.int64)
    for step in range(size):
        chosen = int(increase.argmin())
        order[step] = chosen
        increase += 2 * gram[chosen]
        increase[chosen] = np.inf
    return order


def _per_channel(member: Member, parts: torch.Tensor, size: int) -> torch.Tensor:
    index = torch.from_numpy(member.index).to(parts.device)
    slots = torch.from_numpy(member.slots).to(parts.device)
    summed = parts.new_zeros((len(parts), size), dtype=torch.float64)
    return summed.index_add_(1, index, parts[:, slots].to(torch.float64))


def _reads(group: Group, member: Member) -> bool:
    """True if a layer of torch reads the channels by this dimension: a matrix, but not its output dimension."""
    owner = group.owner(member)
    of_torch = type(owner).__module__.startswith("torch.nn") and not isinstance(owner, (nn.Embedding, nn.EmbeddingBag))
    return of_torch and member.tensor.ndim > 1 and not group.is_output(member)
