"""`counts` names groups as `ratio={...}` does, and breaks no limit silently."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 24), nn.LayerNorm(24), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def test_a_count_is_for_a_name_a_module_a_type_a_number_or_a_group() -> None:
    model = net()
    analysis = fxprune.analyze(model, X)
    for pattern in ("2", "2:channels", model[2], 1, analysis.groups[1], analysis.groups[1].key):
        small = fxprune.transform(model, X, counts={pattern: 8})
        assert [small[0].out_features, small[2].out_features] == [24, 8]
    small = fxprune.transform(model, X, counts={nn.Linear: 8, "2": 5})
    assert [small[0].out_features, small[2].out_features] == [8, 5]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ignore": "2"}, "ignore names it"),
        ({"exact": True}, "a statistic would change"),
    ],
)
@pytest.mark.parametrize("rest", [{}, {"ratio": 0.25}, {"keep": {"macs": 0.99}}])
def test_what_must_stay_stays_and_the_reason_says_so(options: dict[str, Any], text: str, rest: dict[str, Any]) -> None:
    small = fxprune.transform(net(), X, counts={"0": 12, "2": 12}, **options, **rest)
    widths = [small[0].out_features, small[2].out_features]
    assert widths == ([12, 16] if "ignore" in options else [24, 12])
    name, size = ("2", 16) if "ignore" in options else ("0", 24)
    why = f'counts: group "{name}:channels@{name}.weight[0]" keeps all of its {size} channels, not 12: {text}'
    assert any(reason.startswith(why) for reason in fxprune.record(small).reasons)


LIMITS: list[tuple[dict[str, Any], str]] = [
    ({"round_to": 8}, "round_to=8 asks for a multiple"),
    ({"min_channels": 13}, "min_channels=13"),
    ({"max_ratio": 0.2}, "lets it lose 3 of 16"),
]


@pytest.mark.parametrize(("options", "text"), LIMITS)
@pytest.mark.parametrize("rest", [{}, {"ratio": 0.1}, {"keep": {"macs": 0.9}}])
def test_a_count_that_breaks_a_limit_is_refused(options: dict[str, Any], text: str, rest: dict[str, Any]) -> None:
    with pytest.raises(fxprune.PlanError, match="counts contradicts a limit: 12") as raised:
        fxprune.transform(net(), X, counts={"2": 12}, **options, **rest)
    assert text in raised.value.why
    assert raised.value.at == 'group "2:channels@2.weight[0]"'
    kept = fxprune.transform(net(), X, counts={"2": 16, "0": 23}, min_channels=23)  # a group that is smaller stays
    assert kept[2].out_features == 16


def test_the_limit_of_a_budget_is_for_groups_without_a_count() -> None:
    small = fxprune.transform(net(), X, counts={"2": 1}, keep={"macs": 0.3})
    assert small[2].out_features == 1


WRONG: list[tuple[Any, str]] = [
    ({"2": 17}, "it has 16 channels, and 17 shall stay"),
    ({"2": 0}, "at least 1"),
    ({"2": 1.5}, "count"),
    ({"4": 2}, "names no group"),
    ({7: 2}, "group 7"),
    ({nn.Conv2d: 2}, "no module of"),
    ({nn.Linear(4, 24): 2}, "not part of the model"),
    ([("2", 3)], "counts must be a dict"),
]


@pytest.mark.parametrize(("counts", "text"), WRONG)
def test_a_count_that_makes_no_sense_is_refused(counts: Any, text: str) -> None:
    with pytest.raises((fxprune.PlanError, fxprune.InputError), match=text):
        fxprune.transform(net(), X, counts=counts)
