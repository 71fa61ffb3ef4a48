"""Norms over nearly equal numbers, which make roundings as large as any number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.proof.norm_inputs import NormInputs
from tests.mutations import unseen_mutations
from tests.support import call, randomise


class Steep(nn.Module):
    """Two norms that make the difference of two examples 1e13 times larger, with all of its roundings."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = (nn.Linear(24, 24) for _ in range(4))
        self.first, self.second = nn.BatchNorm1d(24, eps=1e-12), nn.BatchNorm1d(24, eps=1e-16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.c(self.first(self.b(torch.relu(self.a(x)))))))


def network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net = randomise(Steep().double().train(), 0)
    x = torch.randn(1, 24, dtype=torch.float64)
    return net, torch.cat([x, x + 1e-14 * torch.randn_like(x)])


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [call(model, inputs)]


def test_roundings_that_norms_make_larger_are_no_difference() -> None:
    net, x = network()
    small = fxprune.transform(net, x, ratio=0.4)
    assert isinstance(small, Steep)
    made = fxprune.record(small)
    assert made.error is not None
    assert made.error < 1e-9
    (note,) = [reason for reason in made.reasons if "make roundings larger" in reason]
    assert "second" in note


def test_without_the_numbers_of_the_reference_results_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above shows nothing."""
    monkeypatch.setattr(NormInputs, "follow", lambda self, key, func, args: args)
    with pytest.raises(fxprune.VerificationError, match="native_batch_norm"):
        fxprune.transform(*network(), ratio=0.4, path="eager")


def test_a_wrong_small_model_is_found_behind_norms() -> None:
    tried = unseen_mutations(*network(), run, each=8, path="eager")
    assert len(tried.tried) == 16
    assert tried.unseen == ()
    assert tried.without_effect == ()
