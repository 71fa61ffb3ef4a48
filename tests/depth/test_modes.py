"""Branches of a forward that asks for its mode, or if gradients are recorded: all that it may do is looked at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import _drop
from fxprune._drop import ComparedCall
from tests.support import randomise


class Asking(nn.Module):
    """Adds a second residual branch where gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x)
        if torch.is_grad_enabled():
            x = x + self.b(x)
        return self.c(x)


def asking() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return randomise(Asking().double().eval(), 0), torch.randn(4, 6, dtype=torch.float64)


def test_a_branch_that_runs_with_gradients_alone_is_found_and_dropped() -> None:
    model, x = asking()
    small = fxprune.transform(model, x, drop=["b"])
    assert [one.name for one in fxprune.record(small).plan.dropped] == ["b"]
    assert torch.allclose(small(x), small.c(x + small.a(x)), rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(small(x), model(x), rtol=0, atol=1e-12)


def test_the_comparison_runs_in_all_modes_that_code_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bool | None, bool]] = []
    error_of = _drop._error

    def noting(model: nn.Module, smaller: nn.Module, call: ComparedCall, places: object) -> float:
        compared.append((call.training, call.gradients))
        return error_of(model, smaller, call, places)

    monkeypatch.setattr(_drop, "_error", noting)
    model, x = asking()
    fxprune.transform(model, x, drop=["a"])
    assert compared == [(None, False), (True, False), (None, True), (True, True)]
