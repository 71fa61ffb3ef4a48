"""Forwards that draw random numbers elsewhere than in torch: both sides of the proof draw the same ones."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from tests.support import randomise

X = torch.randn(2, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DRAWS: dict[str, Callable[[], list[bool]]] = {
    "numpy": lambda: (np.random.rand(9) < 0.5).tolist(),
    "a choice of numpy": lambda: [i in np.random.choice(9, 4, replace=False) for i in range(9)],
    "Python": lambda: [random.random() < 0.5 for _ in range(9)],
    "a sample of Python": lambda: [i in random.sample(range(9), 4) for i in range(9)],
}


class Masking(nn.Module):
    """In training some positions are replaced, as speech models do it."""

    def __init__(self, draw: Callable[[], list[bool]]) -> None:
        super().__init__()
        self.draw = draw
        self.first = nn.Linear(7, 12)
        self.instead = nn.Parameter(torch.ones(12))
        self.last = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if self.training:
            hidden = torch.where(torch.tensor(self.draw()).unsqueeze(-1), self.instead, hidden)
        return self.last(hidden.relu())


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("training", [False, True])
def test_positions_that_are_drawn_are_the_same_on_both_sides(name: str, training: bool) -> None:
    model = randomise(Masking(DRAWS[name]).double().train(training), 0)
    for seed in range(3):
        random.seed(seed)
        np.random.seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist()
        small = fxprune.transform(model, X, ratio=0.4, path="eager")
        assert fxprune.record(small).error < 1e-12
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
