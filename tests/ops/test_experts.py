"""Mixtures of experts: whole experts are removed with their row of the router, or positions of their hidden width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from tests.support import randomise, relative_error

WIDTH, HIDDEN, EXPERTS, CHOSEN = 6, 10, 8, 2


class Mixture(nn.Module):
    """Two matrices per expert; `route` says how the chosen ones are applied."""

    def __init__(self, route: str) -> None:
        super().__init__()
        self.route, self.num_experts = route, EXPERTS
        self.stem, self.router = nn.Linear(5, WIDTH), nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / 3)
        self.shift = nn.Parameter(torch.randn(EXPERTS, HIDDEN))
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / 3)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        scores = self.router(x).softmax(-1)
        weights, chosen = scores.topk(CHOSEN, -1)
        return self.head(x + getattr(self, self.route)(x, scores, weights, chosen))

    def by_index(self, x: Any, scores: Any, weights: Any, chosen: Any) -> torch.Tensor:
        hidden = (torch.einsum("td,tkdh->tkh", x, self.up[chosen]) + self.shift[chosen]).relu()
        return (torch.einsum("tkh,tkhd->tkd", hidden, self.down[chosen]) * weights[..., None]).sum(1)

    def by_one_hot(self, x: Any, scores: Any, weights: Any, chosen: Any) -> torch.Tensor:
        gates = (F.one_hot(chosen, self.num_experts).to(x.dtype) * weights[..., None]).sum(1)
        return self.dense(x, gates)

    def by_scatter(self, x: Any, scores: Any, weights: Any, chosen: Any) -> torch.Tensor:
        return self.dense(x, torch.zeros_like(scores).scatter(-1, chosen, weights))

    def by_gather(self, x: Any, scores: Any, weights: Any, chosen: Any) -> torch.Tensor:
        return self.by_index(x, scores, scores.gather(-1, chosen), chosen.flatten().view(chosen.shape))

    def as_numbers(self, x: Any, scores: Any, weights: Any, chosen: Any) -> torch.Tensor:
        return self.by_scatter(x, scores, weights, chosen) * (chosen * 0.1).sum(-1, keepdim=True)

    def compared(self, x: Any, scores: Any, weights: Any, chosen: Any) -> torch.Tensor:
        return self.by_scatter(x, scores, weights * (chosen == 3), chosen)

    def dense(self, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        hidden = (torch.einsum("td,edh->teh", x, self.up) + self.shift).relu()
        return torch.einsum("teh,ehd,te->td", hidden, self.down, gates)


def mixture(route: str) -> tuple[nn.Module, torch.Tensor]:
    return randomise(Mixture(route).eval(), 3).double(), torch.randn(7, 5, dtype=torch.float64)


def without(model: Any, x: torch.Tensor, gone: list[int], path: Callable[..., Any]) -> torch.Tensor:
    """The mixture written out by hand: the router chooses among the experts that are left."""
    x = model.stem(x)
    scores = model.router(x)
    scores[:, gone] = -torch.inf
    weights, chosen = scores.softmax(-1).topk(CHOSEN, -1)
    return model.head(x + path(x, scores.softmax(-1), weights, chosen))


ROUTES = ("by_index", "by_one_hot", "by_scatter", "by_gather")


@pytest.mark.parametrize("path", ["fx", "eager", "export"])
@pytest.mark.parametrize("route", ROUTES)
def test_whole_experts_are_removed_with_their_row_of_the_router(route: str, path: str) -> None:
    model, x = mixture(route)
    analysis = fxprune.analyze(model, x, path=path)
    (group,) = [g for g in analysis.groups if len(g) == EXPERTS]
    members = {(m.parameter, m.dim) for m in group.members}
    assert members == {("router.weight", 0), ("router.bias", 0), ("up", 0), ("shift", 0), ("down", 0)}
    assert not group.exact
    small = fxprune.transform(model, x, masks={"router": torch.arange(EXPERTS) % 3 != 1}, path=path)
    record = fxprune.record(small)
    gone = record.removed["up"][0]
    assert gone == [1, 4, 7]
    assert record.error is not None
    assert record.error < 1e-9
    assert relative_error(small(x), without(model, x, gone, getattr(model, route))) < 1e-9
    if path == "eager" and route == "by_one_hot":
        assert small.num_experts == EXPERTS - 3


@pytest.mark.parametrize("route", ROUTES)
def test_the_hidden_width_of_experts_is_pruned_exactly(route: str) -> None:
    model, x = mixture(route)
    small = fxprune.transform(model, x, ratio=0.3, exact=True)
    removed = fxprune.record(small).removed
    assert len(removed["up"][2]) == len(removed["down"][1]) == 3
    assert 0 not in removed["up"]
    assert relative_error(small(x), fxprune.masked(model, removed)(x)) < 1e-9


@pytest.mark.parametrize(("route", "why"), [("as_numbers", "used as numbers"), ("compared", "compared with other")])
def test_positions_that_are_used_as_numbers_lock_the_experts(route: str, why: str) -> None:
    model, x = mixture(route)
    analysis = fxprune.analyze(model, x)
    assert not any(len(group) == EXPERTS for group in analysis.groups)
    assert any(why in locked.event.why and ("router.weight", 0) in locked.slots for locked in analysis.locked)


def test_as_many_experts_stay_as_the_router_chooses() -> None:
    model, x = mixture("by_index")
    small = fxprune.transform(model, x, ratio=0.99)
    assert small.get_submodule("router").out_features == CHOSEN
    keep = torch.zeros(EXPERTS, dtype=torch.bool)
    keep[5] = True
    with pytest.raises(fxprune.PlanError, match="too few to choose from"):
        fxprune.transform(model, x, masks={"router": keep})


def test_the_comparison_of_experts_can_fail() -> None:
    model, x = mixture("by_index")
    small = fxprune.transform(model, x, masks={"router": torch.arange(EXPERTS) != 1})
    wrong = without(model, x, [2], model.by_index)
    assert relative_error(small(x), wrong) > 1e-3
