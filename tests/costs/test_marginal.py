"""The cost of one channel of each group, and of all of them but one, beside that of the smaller model."""

from __future__ import annotations

import torch
from torch import nn

import fxprune
from fxprune.costs import all_but_one, per_channel


class Squares(nn.Module):
    """A square weight between equal channels, the states of a GRU, a convolution, and heads of an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.square, self.gru = nn.Linear(3, 8), nn.Linear(8, 8), nn.GRU(8, 6, batch_first=True)
        self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.up(x)
        states, _ = self.gru(stream + torch.relu(self.square(stream)))
        return self.head(torch.relu(self.hidden(states)))


def test_the_cost_of_channels_is_what_a_plan_saves() -> None:
    analysis = fxprune.analyze(Squares().eval(), torch.randn(2, 7, 3))
    assert len(analysis.groups) == 3
    whole = analysis.cost()
    for group, one, most in zip(analysis.groups, per_channel(analysis), all_but_one(analysis), strict=True):
        for kept, saved in ((group.size - 1, one), (1, most)):
            left = analysis.cost(analysis.plan(counts={group.key: kept}))
            assert (whole.params - left.params, whole.macs - left.macs) == (saved.params, saved.macs)
    stream = [
        (one, most)
        for g, one, most in zip(analysis.groups, per_channel(analysis), all_but_one(analysis), strict=True)
        if g.name == "up"
    ]
    assert stream[0][1].params < 7 * stream[0][0].params  # its square weight lost rows and columns
