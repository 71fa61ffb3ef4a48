"""The Fisher gate against gates that are there: a factor on each channel, differentiated sample by sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from fxprune.criteria import fisher_gate_importance, fisher_importance
from tests.support import randomise


class Gated(nn.Module):
    """A net with a residual sum, a depthwise convolution and a flattened map; `gates` multiply its channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.back = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.deep, self.point = nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5 * 4, 3)

    def forward(self, x, gates=None):
        stream, middle, last = gates or (1.0, 1.0, 1.0)
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.back(F.relu(self.inner(x * stream)) * middle)
        x = self.point(F.relu(self.deep(x)) * stream)
        return self.head((F.relu(x) * last).flatten(1))


X, Y = torch.randn(6, 2, 4, 4, dtype=torch.float64), torch.randint(3, (6,))
GROUPS = {"stem": 0, "inner": 1, "point": 2}


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def by_gates(model):
    """1/2 * mean over samples of the squared gradient by each gate, in the plainest way."""
    gates = [torch.ones(n, 1, 1, dtype=torch.float64, requires_grad=True) for n in (6, 4, 5)]
    squares = [torch.zeros(n, dtype=torch.float64) for n in (6, 4, 5)]
    for i in range(len(X)):
        value = F.cross_entropy(model(X[i : i + 1], gates), Y[i : i + 1])
        for total, gradient in zip(squares, torch.autograd.grad(value, gates), strict=True):
            total += gradient.flatten() ** 2
    return [total / len(X) / 2 for total in squares]


@pytest.mark.parametrize("sizes", [[6], [2, 4], [1] * 6, [4, 2]])
def test_the_scores_are_the_squares_of_gates_sample_by_sample_in_any_batches(sizes):
    model = randomise(Gated().double(), 3).eval()
    batches = list(zip(X.split(sizes), Y.split(sizes), strict=True))
    importance = fisher_gate_importance(model, batches, loss=loss)
    wanted = by_gates(model)
    for group in fxprune.analyze(model, X[:1]).groups:
        assert torch.allclose(importance(group), wanted[GROUPS[group.name]], rtol=1e-9, atol=0), group.name


def test_every_sample_counts():
    """A score that kept the last sample alone, or the square of the sum, would be another one."""
    model = randomise(Gated().double(), 3).eval()
    group = next(g for g in fxprune.analyze(model, X[:1]).groups if g.name == "inner")

    def scores(part):
        return fisher_gate_importance(model, [(X[part], Y[part])], loss=loss)(group)

    every = [scores(slice(i, i + 1)) for i in range(6)]
    assert torch.allclose(scores(slice(None)), torch.stack(every).mean(0), rtol=1e-9)
    assert not torch.allclose(scores(slice(None)), every[-1], rtol=0.1)


def test_fisher_adds_the_squares_of_all_batches_and_not_the_last_one_alone():
    model = randomise(Gated().double(), 3).eval()
    single = [(X[i : i + 1], Y[i : i + 1]) for i in range(6)]
    every = [fisher_importance(model, [batch], loss=loss).terms["inner.weight"] for batch in single]
    whole = fisher_importance(model, single, loss=loss).terms["inner.weight"]
    assert torch.allclose(whole, torch.stack(every).mean(0), rtol=1e-9)
    assert not torch.allclose(whole, every[-1], rtol=0.1)


class Sometimes(nn.Module):
    """A layer that only samples with a positive first feature reach."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.other = nn.Linear(2, 3), nn.Linear(3, 1), nn.Linear(2, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x))) if bool(x[0, 0] > 0) else self.other(x)


def test_samples_that_do_not_reach_a_layer_count_as_zero():
    model = Sometimes().double().eval()
    x = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [-1.0, 1.0], [2.0, 0.5]], dtype=torch.float64)
    made, alone = (
        fisher_gate_importance(model, [part], loss=lambda model, x: model(x).sum()).products["second.weight", 1]
        for part in (x, x[[0, 3]])
    )
    assert made.shape == (4, 3)
    assert torch.allclose(made.square().mean(0), alone.square().mean(0) / 2)
