"""Scores from data do not depend on the batches that the data come in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.criteria import MEASURED
from fxprune.criteria.from_data import takes_loss
from tests.criteria.names import OF_EXPERTS

SPLITS = ([9], [3, 3, 3], [7, 2], [1, 5, 3], [1] * 9)


class Normed(nn.Module):
    """A feed-forward block around layer norms, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.last, self.head = (
            nn.LayerNorm(8),
            nn.Linear(8, 6),
            nn.Linear(6, 8),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.last(torch.relu(self.first(self.norm(x))))
        return self.head(self.norm(x).mean(1))


def convolutions() -> nn.Module:
    first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, stride=2)
    return nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(45, 4))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("net", [convolutions, Normed])
@pytest.mark.parametrize("name", [name for name in MEASURED if name not in ("activation_rank", *OF_EXPERTS)])
def test_unequal_batches_give_the_scores_of_one_batch(name: str, net: Any) -> None:
    model = net().eval().double()
    x = torch.randn((9, 5, 8) if net is Normed else (9, 3, 7, 7)).double()
    x *= torch.logspace(-2, 1, 9).double().view(9, *[1] * (x.ndim - 1))
    y = torch.randint(4, (9,))
    groups = fxprune.analyze(model, x[:2]).groups
    for labelled in {True: [True], False: [False, True], None: [False]}[takes_loss(name)]:
        found = []
        for sizes in SPLITS:
            parts = x.split(sizes)
            batches = list(zip(parts, y.split(sizes), strict=True)) if labelled else parts
            made = MEASURED[name](model, batches, **({"loss": loss} if labelled else {}))
            found.append([made(group) for group in groups])
        for other in found[1:]:
            for ours, theirs in zip(found[0], other, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_ranks_of_maps_do_not_depend_on_batches() -> None:
    model, x = convolutions().eval().double(), torch.randn(9, 3, 7, 7).double()
    groups = fxprune.analyze(model, x[:2]).groups
    found = [[MEASURED["activation_rank"](model, x.split(sizes))(group) for group in groups] for sizes in SPLITS]
    assert all(torch.equal(ours, theirs) for other in found[1:] for ours, theirs in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", ["fisher", "fisher_gate"])
def test_a_loss_between_samples_is_refused_where_samples_count_alone(name: str) -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(8, 4)

    def contrast(made: nn.Module, batch: Tensor) -> Tensor:
        vectors = made(batch)
        return nn.functional.cross_entropy(vectors @ vectors.T, torch.arange(len(batch)))

    with pytest.raises(fxprune.InputError, match="the loss of one sample has no gradient") as raised:
        MEASURED[name](model, [x], loss=contrast)
    assert 'importance="taylor"' in raised.value.do
    assert MEASURED["taylor"](model, [x], loss=contrast).terms["0.weight"].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [name for name in MEASURED if takes_loss(name) is not True and name not in OF_EXPERTS])
def test_activations_that_are_not_finite_are_refused_by_layer(name: str, bad: float) -> None:
    model, x = convolutions().eval(), torch.randn(9, 3, 7, 7)
    batches = [x.clone(), x.clone()]
    batches[1][4, 1, 2, 3] = bad
    with pytest.raises(fxprune.InputError, match="activations are not finite") as raised:
        MEASURED[name](model, batches)(fxprune.analyze(model, x[:2]).groups[0])
    assert raised.value.at.startswith(('"0"', '"0.weight"'))
    assert raised.value.do
