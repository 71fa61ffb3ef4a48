"""Constants are folded into what only training reads as well."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.support import randomise, relative_error


class Net(nn.Module):
    """Sigmoids are 0.5 where the weights of a channel are zero and it has no bias; a head reads them in training."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stem, self.last, self.head = nn.Linear(6, 16), nn.Linear(16, 3), head

    def forward(self, x: torch.Tensor) -> Any:
        h = torch.sigmoid(self.stem(x))
        y = self.last(h)
        return (y, self.head(h)) if self.training else y


HEADS = {
    "linear": lambda: nn.Linear(16, 3),
    "without a bias": lambda: nn.Linear(16, 3, bias=False),
    "two layers": lambda: nn.Sequential(nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3)),
}


@pytest.mark.parametrize("given_in", [False, True], ids=["given in evaluation", "given in training"])
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("options", [{"ratio": 0.5, "bias": "fold"}, {"masks": "zeros"}], ids=["ratio", "zeros"])
def test_a_head_of_training_gets_the_constants_too(name: str, given_in: bool, options: Any) -> None:
    model = randomise(Net(HEADS[name]()).double(), 2, weights=True).train(given_in)
    with torch.no_grad():
        model.stem.weight[[1, 4, 5]] = 0
    x = torch.randn(4, 6, dtype=torch.float64)
    small = fxprune.transform(model, x, path="eager", **options)
    made = fxprune.record(small)
    assert made.removed
    reference = fxprune.masked(model, made.zeroed)
    for training in (False, True):
        assert relative_error(small.train(training)(x), reference.train(training)(x)) < 1e-9, training
