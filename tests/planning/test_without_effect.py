"""Options that have no effect are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
KEEP = torch.arange(8) > 1


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


RANKING: list[dict[str, Any]] = [
    {"importance": "l1"},
    {"importance": lambda group: torch.ones(group.size)},
    {"round_to": 2},
    {"min_channels": 2},
    {"max_ratio": 0.5},
    {"scope": "global"},
    {"uniform": "?"},
]


@pytest.mark.parametrize(
    "option", [*RANKING, {"ignore": "0"}, {"exact": True}, {"border": "map"}, {"latency_table": False}]
)
def test_a_plan_leaves_other_choices_without_effect(option: dict[str, Any]) -> None:
    analysis = fxprune.analyze(net(), X)
    plan, (name,) = analysis.plan(ratio=0.5), option
    for make in (lambda **o: fxprune.transform(net(), X, **o), analysis.transform):
        with pytest.raises(fxprune.PlanError, match=f"{name} is without effect here") as raised:
            make(plan=plan, **option)
        assert raised.value.why.startswith("a plan says already")
        assert raised.value.at.startswith(f"{name}=")


@pytest.mark.parametrize("option", RANKING)
def test_masks_leave_a_ranking_without_effect(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(fxprune.PlanError, match=f"{name} is without effect here"):
        fxprune.analyze(net(), X).plan(masks={"0": KEEP}, **option)
    small = fxprune.transform(net(), X, masks={"0": KEEP}, ignore=[], importance="l2", round_to=1)
    assert small[0].out_features == 6


REST: list[tuple[dict[str, Any], str]] = [
    ({"ratio": 0.5, "scope": "global"}, "scope"),
    ({"counts": {"0": 4}, "scope": "isomorphic"}, "scope"),
    ({"ratio": 0.5, "border": "map"}, "border"),
    ({"ratio": 0.5, "repair_mode": "bias"}, "repair_mode"),
    ({"ratio": 0.5, "repair_mode": "norms", "repair": False}, "repair_mode"),
    ({"keep": {"macs": 0.5}, "repair_inputs": lambda batch: batch}, "repair_inputs"),
]


@pytest.mark.parametrize(("options", "name"), REST)
def test_what_nothing_asks_for_is_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(fxprune.PlanError, match=f"{name} is without effect here"):
        fxprune.transform(net(), X, **options)


@pytest.mark.parametrize(
    "request_", [{"ratio": 0.5}, {"keep": {"macs": 0.5}}, {"counts": {"0": 4}}, {"masks": {"0": KEEP}}]
)
@pytest.mark.parametrize("table", [True, "folder"])
def test_a_table_of_latencies_without_a_latency_is_refused(request_: dict[str, Any], table: Any) -> None:
    with pytest.raises(fxprune.PlanError, match="latency_table is without effect here") as raised:
        fxprune.transform(net(), X, **request_, latency_table=table)
    assert 'keep={"latency": ...}' in raised.value.do
    assert fxprune.transform(net(), X, **request_, latency_table=False)[0].out_features < 8


@pytest.mark.parametrize("seed", [1.5, "a", -1, True])
@pytest.mark.parametrize(
    "request_",
    [{"ratio": 0.5}, {"masks": {"0": KEEP}}, {"keep": {"macs": 0.5}, "scope": "search", "repair": [X.repeat(8, 1)]}],
)
def test_a_seed_is_checked_whatever_reads_it(request_: dict[str, Any], seed: Any) -> None:
    with pytest.raises(fxprune.PlanError, match="seed must be an integer of at least 0") as raised:
        fxprune.transform(net(), X, **request_, seed=seed)
    assert raised.value.do


@pytest.mark.parametrize(
    ("options", "do"),
    [
        ({"ratio": 0.5, "min_channels": 1.5}, "min_channels=8"),
        ({"ratio": 0.5, "max_ratio": "a"}, "max_ratio=0.9"),
        ({"ratio": 0.5, "max_ratio": 0}, "max_ratio=0.9"),
        ({"counts": {"0": 0.5}}, 'ratio={"0": ...}'),
        ({"counts": {"0": "4"}}, 'counts={"layer1.0.conv1": 24}'),
        ({"counts": 4}, 'counts={"layer1.0.conv1": 24}'),
        ({"counts": {"0": 9}}, "at most 8"),
        ({}, 'keep={"macs": 0.5}'),
    ],
)
def test_wrong_limits_say_what_to_do(options: dict[str, Any], do: str) -> None:
    with pytest.raises(fxprune.PlanError) as raised:
        fxprune.transform(net(), X, **options)
    assert do in raised.value.do


def test_a_limit_that_holds_every_group_is_named() -> None:
    with pytest.warns(fxprune.NothingRemovedWarning, match="min_channels=100 leaves every group whole"):
        fxprune.transform(net(), X, ratio=0.5, min_channels=100)
