"""Operations that torch calls on its own account, and that of the model by the same name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune
from tests.support import randomise

X = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TABLES: dict[str, Callable[[int], torch.Tensor]] = {
    "arange": lambda size: torch.arange(size, dtype=torch.float64).unsqueeze(-1),
    "eye": lambda size: torch.eye(size, dtype=torch.float64).sum(-1, keepdim=True),
    "linspace": lambda size: torch.linspace(0, 1, size, dtype=torch.float64).unsqueeze(-1),
}


class Detaching(nn.Module):
    """Adds a table that it makes, and detaches a wide tensor, as code with a memory of former calls does."""

    def __init__(self, table: Callable[[int], torch.Tensor]) -> None:
        super().__init__()
        self.table = table
        self.first = nn.Linear(7, 12)
        self.last = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x) + self.table(x.shape[1])
        return self.last(hidden.relu() + hidden.detach())


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("training", [False, True])
def test_detached_tensors_are_told_from_those_of_factories(name: str, training: bool) -> None:
    model = randomise(Detaching(TABLES[name]).double().train(training), 0)
    small = fxprune.transform(model, X, ratio=0.4, path="eager")
    assert small.first.out_features < 12
    reference = fxprune.masked(model, fxprune.record(small).removed)(X)
    torch.testing.assert_close(small(X), reference, rtol=1e-12, atol=1e-12)
