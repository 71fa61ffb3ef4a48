"""The greedy removal of channels from the inputs of layers, where the other inputs make up for each of them.

With B the block (H^-1)[S, S] of the inputs S of a channel, W the weight, f the weights of the outputs and F = diag(f),
the removal of the channel increases the error by the trace of B^-1 (W[:, S]^T F W[:, S]), and then

    A = H^-1[:, S] B^-1,  W <- W - W[:, S] A^T,  H^-1 <- H^-1 - A (H^-1[:, S])^T

Only the blocks B and P = W[:, S]^T F W[:, S] of the channels are needed at every step; H^-1 as a whole is brought up to
date after some steps together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

TINY = torch.finfo(torch.float64).tiny

PENDING = 128
"""So many columns wait before H^-1 as a whole is brought up to date."""

SHRINK = 0.8
"""Inputs of removed channels are left out as soon as no larger share of the channels is left."""


@dataclass
class ReadingLayer:
    """One block of weights that reads the group: k inputs, o outputs, m inputs of each channel at most.

    weight: [o, k]. inverse: H^-1, [k, k], without what waits in `pending`. outputs: f, [o]. The inputs of channel c are
    those from c m to (c + 1) m; where it has fewer, some of them have a weight of zero and depend on nothing. Inputs of
    no channel come last. blocks: B, [c, m, m]. products: P, [c, m, m].
    """

    weight: Tensor
    inverse: Tensor
    outputs: Tensor
    each: int
    channels: int
    blocks: Tensor = field(init=False)
    products: Tensor = field(init=False)
    pending: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        c, m = self.channels, self.each
        diagonal = torch.arange(c)
        self.blocks = self.inverse[: c * m, : c * m].view(c, m, c, m)[diagonal, :, diagonal].clone()
        own = self.weight[:, : c * m].view(-1, c, m)
        self.products = torch.einsum("ocm,o,ocn->cmn", own, self.outputs, own)

    def costs(self, channels: Tensor) -> Tensor:
        """The increase of the error if one of these channels goes, [channels]."""
        blocks, products = self.blocks[channels], self.products[channels]
        if self.each == 1:
            found: Tensor = (products / blocks).flatten()
        else:
            factor = torch.linalg.cholesky(blocks)
            found = torch.cholesky_solve(products, factor).diagonal(dim1=1, dim2=2).sum(1)
        return found.clamp(min=0)

    def remove(self, channel: int) -> None:
        """Remove a channel; the other inputs make up for it."""
        m, own = self.each, slice(channel * self.each, (channel + 1) * self.each)
        columns = self.inverse[:, own].clone()
        for gain, crossing in self.pending:
            columns -= gain @ crossing[own].mT
        block = (columns[own] + columns[own].mT) / 2
        gain = torch.cholesky_solve(columns.mT, torch.linalg.cholesky(block)).mT
        weight = self.weight[:, own].clone()
        crossing = self.weight.mT @ (self.outputs[:, None] * weight)  # W^T F W[:, S]
        self.weight -= weight @ gain.mT
        count = self.channels * m
        a, x, g = (t[:count].view(self.channels, m, m) for t in (gain, crossing, columns))
        mixed = x @ a.mT
        self.products += a @ crossing[own] @ a.mT - mixed - mixed.mT
        self.blocks -= a @ g.mT
        self.pending.append((gain, columns))
        if len(self.pending) * m >= PENDING:
            self._bring_up_to_date()

    def keep(self, channels: Tensor) -> None:
        """Leave out the inputs of all other channels."""
        self._bring_up_to_date()
        inputs = (channels[:, None] * self.each + torch.arange(self.each)).flatten()
        rest = torch.arange(self.channels * self.each, self.weight.shape[1])
        inputs = torch.cat([inputs, rest])
        self.weight, self.inverse = self.weight[:, inputs], self.inverse[inputs][:, inputs]
        self.blocks, self.products = self.blocks[channels], self.products[channels]
        self.channels = len(channels)

    def _bring_up_to_date(self) -> None:
        if self.pending:
            gains, columns = (torch.cat(parts, 1) for parts in zip(*self.pending, strict=True))
            self.inverse.addmm_(gains, columns.mT, alpha=-1)
            self.pending.clear()


def reading_layer(
    weight: Tensor, moments: Tensor, outputs: Tensor, owner: Tensor, size: int, ridge: float
) -> ReadingLayer:
    """A block of weights that reads a group.

    weight: [o, k]. moments: H, [k, k]. owner: for each input its channel, -1 for none. size: the number of channels.
    ridge: added to H, as a share of its mean diagonal.
    """
    inputs = torch.arange(len(owner))[owner >= 0]
    counts = torch.bincount(owner[inputs], minlength=size)
    most, count = int(counts.max()), len(owner)
    columns = (count + torch.arange(most)).repeat(size, 1)
    ordered = inputs[torch.argsort(owner[inputs], stable=True)]
    places = torch.arange(len(ordered)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    columns[owner[ordered], places] = ordered
    mean = moments.diagonal().mean().clamp(min=TINY)
    damped = moments + torch.diag_embed((ridge * mean).expand(count))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    found = torch.cat([columns.flatten(), torch.arange(count)[owner < 0]])
    taken = found.clamp(max=count - 1)
    inside = (found < count).to(weight.dtype)
    inverse = inverse[taken][:, taken] * inside[:, None] * inside
    inverse += torch.diag_embed(1 - inside)
    return ReadingLayer(weight[:, taken] * inside, inverse, outputs, most, size)


def removal_order(layers: Sequence[ReadingLayer], size: int) -> tuple[Tensor, Tensor]:
    """The channels in the order in which the greedy search removes them, and the increase of the error at each step.

    Changes the layers in place.
    """
    names, left = torch.arange(size), torch.arange(size)
    order, increases = [], []
    for _ in range(size):
        costs = torch.stack([layer.costs(left) for layer in layers]).sum(0)
        best = int(costs.argmin())
        chosen = int(left[best])
        order.append(int(names[chosen]))
        increases.append(float(costs[best]))
        left = left[left != chosen]
        if not len(left):
            break
        for layer in layers:
            layer.remove(chosen)
        if len(left) < SHRINK * len(names):
            for layer in layers:
                layer.keep(left)
            names, left = names[left], torch.arange(len(left))
    return torch.tensor(order), torch.tensor(increases, dtype=torch.float64)
