"""Layers whose outputs reach a result keep them on the path "hooks": its zeros would be results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxprune
from tests.support import randomise

X = torch.randn(5, 6, dtype=torch.float64)


class Net(nn.Module):
    """Leaves torch in the middle, so that hooks are the only path that removes something."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem, self.body, self.head, self.end = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 4), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.from_numpy(torch.relu(self.stem(x)).detach().numpy() * 2)
        return self.end(self.head(torch.relu(self.body(h))))


def written_into_zeros(y: torch.Tensor) -> torch.Tensor:
    made = torch.zeros(2, *y.shape, dtype=y.dtype)
    made[1] = y
    return made


ENDS = {
    "itself": lambda y: y,
    "a view": lambda y: y.T[1:],
    "softmax": lambda y: y.softmax(-1),
    "an operation in place": lambda y: y.mul_(2).add_(1),
    "written into other memory": written_into_zeros,
    "positions": lambda y: y.argmax(-1),
    "a product without a weight": lambda y: y @ y.T,
}


@pytest.mark.parametrize("name", ENDS)
def test_a_layer_that_reaches_a_result_keeps_its_outputs(name: str) -> None:
    model = randomise(Net(ENDS[name]).double(), seed=1).eval()
    small = fxprune.transform(model, X, ratio=0.5)
    removed = fxprune.record(small).removed
    assert fxprune.record(small).path == "hooks"
    assert removed.keys() == {"stem.weight", "stem.bias", "body.weight", "body.bias"}
    assert torch.allclose(small(X).double(), fxprune.masked(model, removed)(X).double(), atol=1e-9)


def test_where_the_result_comes_from_outside_no_layer_is_cut_that_it_may_hold() -> None:
    model = randomise(Net(lambda y: torch.from_numpy(y.detach().numpy() + 1)).double(), seed=1).eval()
    (group,) = fxprune.analyze(model, X, path="hooks").groups  # what body makes is read by the weight of head alone
    assert group.name == "body"
