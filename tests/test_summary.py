"""`summary`: the figures of two models, side by side."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import fxprune
from fxprune._summary import ModelFigures, Summary
from fxprune.costs import Latency, cost, peak_memory
from fxprune.errors import CaptureError, InputError

X = torch.zeros(2, 8)


def net(width: int = 64, device: str = "cpu") -> nn.Module:
    return nn.Sequential(nn.Linear(8, width, device=device), nn.ReLU(), nn.Linear(width, 2, device=device))


def test_the_figures_are_those_of_the_models() -> None:
    big, small = net(), net(32)
    found = fxprune.summary(big, small, X, lambda model: model[0].out_features, rounds=2)
    for figures, model in ((found.before, big), (found.after, small)):
        counted = cost(model, X)
        assert (figures.params, figures.bytes, figures.macs) == (counted.params, counted.bytes, counted.macs)
        assert figures.memory == peak_memory(model, X)
        assert figures.latency is not None
        assert figures.latency.rounds == 2
        assert figures.score == model[0].out_features


FIXED = Summary(
    ModelFigures(706, 2824, 1280, 1024, Latency(0.02, 0.002, 5, "cpu", 1), 0.9),
    ModelFigures(354, 1416, 640, 512, Latency(0.01, 0.001, 5, "cpu", 1), 0.875),
)


def test_the_table_has_a_row_for_every_figure() -> None:
    assert FIXED.report().splitlines() == [
        "                             before       after    left",
        "-----------------------  ----------  ----------  ------",
        "parameters                      706         354   50.1%",
        "bytes                          2824        1416   50.1%",
        "MACs                           1280         640   50.0%",
        "peak memory, bytes             1024         512   50.0%",
        "latency (cpu, 1 thread)  20 ms ± 5%  10 ms ± 5%   50.0%",
        "score                           0.9       0.875  -0.025",
    ]
    assert str(FIXED) == FIXED.report()


def test_json_has_every_figure() -> None:
    assert json.loads(FIXED.report("json")) == {"schema": "fxprune.summary/1", **dataclasses.asdict(FIXED)}
    assert "| latency (cpu, 1 thread) |" in FIXED.report("markdown")


def test_what_is_not_known_is_left_out() -> None:
    meta = fxprune.summary(net(device="meta"), net(32, "meta"), X.to("meta"))
    assert meta.before.latency is None
    assert "latency" not in meta.report()
    assert "score" not in meta.report()
    assert fxprune.summary(net(), net(32), X, rounds=0).after.latency is None


@pytest.mark.parametrize("value", [math.nan, None, "0.9", True, torch.zeros(2)])
def test_a_score_is_a_number(value: object) -> None:
    with pytest.raises(InputError, match="no finite number"):
        fxprune.summary(net(), net(32), X, lambda model: value, rounds=0)


def test_a_score_that_raises_says_for_which_model() -> None:
    with pytest.raises(InputError, match="the score raises an error") as raised:
        fxprune.summary(net(), net(32), X, lambda model: 1 / 0, rounds=0)
    assert raised.value.at == "score of the Sequential"
    assert "ZeroDivisionError" in raised.value.why


def test_a_score_may_change_the_model_that_it_gets() -> None:
    big, small = net().train(), net(32).train()

    def score(model: nn.Module) -> float:
        nn.init.zeros_(model.eval()[0].weight)
        return 1.0

    fxprune.summary(big, small, X, score, rounds=0)
    for model in (big, small):
        assert model.training
        assert model[0].weight.any()


def test_a_score_may_be_a_tensor_of_one_number() -> None:
    found = fxprune.summary(net(), net(32), X, lambda model: torch.tensor(0.5), rounds=0)
    assert found.after.score == 0.5


def test_a_score_is_a_function() -> None:
    with pytest.raises(InputError, match="must be a function"):
        fxprune.summary(net(), net(32), X, 0.5, rounds=0)


def test_inputs_that_do_not_fit_and_negative_rounds_are_refused() -> None:
    with pytest.raises(CaptureError):
        fxprune.summary(net(), net(32), torch.zeros(2, 9), rounds=2)
    with pytest.raises(InputError, match="rounds"):
        fxprune.summary(net(), net(32), X, rounds=-1)


def test_a_share_is_the_whole_only_where_nothing_went() -> None:
    counted = [ModelFigures(params, 4 * params, 1, 1) for params in (100_000, 99_999)]
    assert "> 99.9%" in Summary(counted[0], counted[1]).report().splitlines()[2]
    assert "100.0%" in Summary(counted[0], counted[0]).report().splitlines()[2]


def test_models_that_stand_the_other_way_round_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    small = fxprune.transform(model, torch.zeros(1, 4), ratio=0.5)
    with pytest.raises(InputError, match=r"other way round[\s\S]*summary\(model, small, "):
        fxprune.summary(small, model, torch.zeros(1, 4), rounds=0)
