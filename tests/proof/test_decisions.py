"""Decisions between equal numbers: rounding makes them, so that both models may decide otherwise and be right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.proof.decisions import Decisions
from tests.support import randomise

DECISIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sort": lambda scores: scores.sort(-1)[1],
    "topk": lambda scores: scores.topk(1, -1)[1],
    "argmax": lambda scores: scores.argmax(-1, keepdim=True),
    "greater": lambda scores: (scores[:, :1] > scores[:, 1:]).long(),
}


class Tied(nn.Module):
    """Two scores of one product, which differ by rounding only, decide which of two values comes out."""

    def __init__(self, decide: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 96), nn.Linear(96, 1), nn.Linear(96, 2)
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        scores = torch.stack([h @ self.b.weight[0], (h * self.b.weight[0]).sum(-1)], -1)
        return self.c(h).gather(-1, self.decide(scores))


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return randomise(Tied(DECISIONS[name]).double().eval(), 0), torch.randn(64, 3).double()


@pytest.mark.parametrize("name", DECISIONS)
def test_the_small_model_follows_decisions_that_rounding_makes(name: str) -> None:
    net, x = network(name)
    small = fxprune.transform(net, x, ratio=0.5)
    made = fxprune.record(small)
    assert made.error is not None
    assert made.error < 1e-12
    assert fxprune.verify(net, small, x) < 1e-12
    (note,) = [reason for reason in made.reasons if "rounding decides" in reason]
    assert "in the model" in note


@pytest.mark.parametrize("name", DECISIONS)
def test_a_wrong_small_model_is_found_behind_decisions(name: str) -> None:
    net, x = network(name)
    small = fxprune.transform(net, x, ratio=0.5)
    with torch.no_grad():
        small.c.weight[0, 3] *= 1.01
    assert fxprune.verify(net, small, x) > 1e-6
    small = fxprune.transform(net, x, ratio=0.5)
    with torch.no_grad():
        small.b.weight[0, 3] *= 1.01
    assert fxprune.verify(net, small, x) > 1e-6


@pytest.mark.parametrize("name", DECISIONS)
def test_without_the_decisions_of_the_reference_results_differ(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above show nothing."""
    monkeypatch.setattr(Decisions, "follow", lambda self, key, func, args, kwargs, made: made)
    with pytest.raises(fxprune.VerificationError):
        fxprune.transform(*network(name), ratio=0.5)
