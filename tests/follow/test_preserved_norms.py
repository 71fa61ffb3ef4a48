"""Optimizers, averages and `expand` with weights that norms="preserve" has multiplied: norms count the old width."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import fxprune
from tests.support import randomise, relative_error


class OnePlus(nn.Module):
    """An RMS norm that scales by 1 + weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


class Net(nn.Module):
    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 16), norm(16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NORMS = pytest.mark.parametrize("norm", [nn.RMSNorm, OnePlus])


def made(norm: type[nn.Module]) -> Net:
    model = Net(norm).double()
    randomise(model, 0)
    return model.eval()


@NORMS
def test_the_large_model_gets_weights_without_the_factor(norm: type[nn.Module]) -> None:
    model = made(norm)
    before = copy.deepcopy(model.norm.weight.detach())
    small = fxprune.transform(model, X, ratio=0.5, norms="preserve")
    assert fxprune.record(small).exact
    kept = [i for i in range(16) if i not in fxprune.record(small).removed["norm.weight"][0]]
    fxprune.expand(small, model, others="zero")
    assert torch.allclose(model.norm.weight[kept], before[kept], rtol=0, atol=1e-14)
    assert relative_error(small(X), model(X)) < 1e-12


@NORMS
def test_an_average_has_the_factor_too(norm: type[nn.Module]) -> None:
    model = made(norm)
    average = AveragedModel(model)
    average.update_parameters(model)
    randomise(average.module, 1)
    wanted = copy.deepcopy(average.module)
    small = fxprune.transform(model, X, ratio=0.5, norms="preserve", ema=average)
    reference = fxprune.masked(wanted, fxprune.record(small).removed)
    assert relative_error(average.module(X), reference(X)) < 1e-12


@NORMS
def test_state_of_an_optimizer_has_the_inverse_factor(norm: type[nn.Module]) -> None:
    model = made(norm)
    optimizer = torch.optim.Adam(model.parameters())
    model(X).square().sum().backward()
    optimizer.step()
    mean = optimizer.state[model.norm.weight]["exp_avg"].clone()
    small = fxprune.transform(model, X, ratio=0.5, norms="preserve", optimizer=optimizer)
    kept = [i for i in range(16) if i not in fxprune.record(small).removed["norm.weight"][0]]
    assert torch.allclose(optimizer.state[small.norm.weight]["exp_avg"], mean[kept] / math.sqrt(2))
