"""The second moments of what a moving kernel reads, by differences: its windows overlap."""

from __future__ import annotations

import torch
from torch import Tensor


def worth_moving(taps: int, places: int) -> bool:
    """True if `moving_squares` needs less than half of the multiplications that the rows themselves need."""
    return taps > 1 and 1 / taps + 2 / max(places, 1) < 0.5


class MovingSquares:
    """The sums over samples and positions p of y y^T, with y[f, t] = x[f, p + dilation * t], [g, (f t), (f t)].

    With S[t, t'] the block of two taps, the sum for the next taps is that over a window which lost its first positions
    and won new ones at its end:

        S[t + 1, t' + 1] = S[t, t'] - first[t, t'] + last[t, t']

    So only S[0, t'] is a sum over all positions.
    """

    def __init__(self, taps: int, dilation: int) -> None:
        self.taps, self.dilation = taps, dilation
        self._start: Tensor | None = None
        self._change: Tensor | None = None
        self._rows: list[tuple[Tensor, float]] = []

    def add(self, x: Tensor) -> None:
        """Add samples, [g, n, f, length]."""
        reach = self.dilation * (self.taps - 1)
        features, places = x.shape[2], x.shape[3] - reach
        if self._start is None:
            self._start = x.new_zeros(self.taps, len(x), features, features)
        line = x.transpose(1, 2).contiguous()
        start = line[..., :places].flatten(2)  # [g, f, (n p)]
        for tap, total in enumerate(self._start):
            begin = self.dilation * tap
            total.baddbmm_(start, line[..., begin : begin + places].flatten(2).mT)
        self._rows += [(self._between(x[..., :reach]), -1.0), (self._between(x[..., places:]), 1.0)]
        if sum(rows.shape[1] for rows, _ in self._rows) > self._rows[0][0].shape[2]:
            self._summed()

    def _between(self, x: Tensor) -> Tensor:
        """The inputs that two taps do not share, as rows [g, (n dilation), (f t)]. x: [g, n, f, (t dilation)]."""
        blocks, count, features = x.shape[:3]
        steps = x.reshape(blocks, count, features, self.taps - 1, self.dilation).permute(0, 1, 4, 2, 3)
        return steps.reshape(blocks, count * self.dilation, features * (self.taps - 1))

    def _summed(self) -> Tensor:
        """The sum of last[t, t'] - first[t, t'], [g, (f t), (f t)]."""
        if self._rows:
            rows = torch.cat([part for part, _ in self._rows], 1)
            signed = torch.cat([sign * part for part, sign in self._rows], 1)
            made = symmetric_product(rows, signed)
            self._change = made if self._change is None else self._change.add_(made)
            self._rows = []
        assert self._change is not None
        return self._change

    def total(self) -> Tensor:
        """The sums over all that was added."""
        assert self._start is not None
        taps, blocks, features = self._start.shape[:3]
        change = self._summed().view(blocks, features, taps - 1, features, taps - 1)
        made = self._start.new_empty(blocks, features, taps, features, taps)
        made[:, :, 0] = self._start.permute(1, 2, 3, 0)
        made[:, :, 1:, :, 0] = self._start[1:].permute(1, 3, 0, 2)
        for tap in range(1, taps):
            torch.add(made[:, :, tap - 1, :, :-1], change[:, :, tap - 1], out=made[:, :, tap, :, 1:])
        return made.view(blocks, features * taps, features * taps)


BLOCK = 512
"""The columns of a block of `symmetric_product`."""


def symmetric_product(x: Tensor, weighted: Tensor | None = None) -> Tensor:
    """The sum over rows of x x^T, [g, k, k]; only one of two blocks that mirror each other is computed.

    x: [g, r, k]. weighted: x times the weight of each row, if they have any.
    """
    y = x if weighted is None else weighted
    size = x.shape[2]
    if size <= BLOCK:
        return y.mT @ x
    made = x.new_empty(x.shape[0], size, size)
    for start in range(0, size, BLOCK):
        stop = start + BLOCK
        made[:, start:, start:stop] = y[:, :, start:].mT @ x[:, :, start:stop]
        made[:, start:stop, stop:] = made[:, stop:, start:stop].mT
    return made
