"""Results that are NaN throughout prove nothing, and that is said."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import fxprune


class Hidden(nn.Module):
    """An average over what the mask shows, and a second result that the mask does not touch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.beside = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.up(x))
        weights = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf).softmax(-1).to(y.dtype)
        return self.down((weights[..., None] * y).sum(1)), self.beside(y)


X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
ALL, SOME = torch.ones(3, 5, dtype=torch.bool), torch.arange(15).view(3, 5) < 8
TOLD = r"1 of the 2 tensors that the original returns is NaN throughout .* give inputs on which it has numbers"


def test_a_result_without_a_number_is_said() -> None:
    torch.manual_seed(0)
    net = Hidden().eval()
    with pytest.warns(UserWarning, match=TOLD):
        small = fxprune.transform(net, (X, ALL), ratio=0.5)
    assert any("NaN throughout" in reason for reason in fxprune.record(small).reasons)
    with pytest.warns(UserWarning, match=TOLD):
        assert fxprune.verify(net, small, (X, ALL)) < 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fxprune.verify(net, small, (X, SOME)) < 1e-9  # some rows are NaN, and the others are compared
