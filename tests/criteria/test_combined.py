"""Sums and products of criteria against the scores of their parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from fxprune.criteria import MEASURED, comparable, product, scores_of, weighted
from fxprune.errors import PlanError
from tests.support import randomise

X = torch.randn(8, 3, 8, 8, dtype=torch.float64)


def net():
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)).double()
    return randomise(made, 0).eval()


def loss(model, x):
    return model(x).square().mean()


def scores(model, importance):
    findings = fxprune.analyze(model, X).groups[0]._findings
    found = scores_of(findings, importance, findings.groups, 3)
    return [found[group.channels] for group in findings.groups]


def mine(group):
    return group.producer.sum_per_channel(group.producer.tensor.detach().abs())


def test_a_weighted_sum_adds_scores_over_the_mean_of_their_group():
    model = net()
    made = scores(model, weighted({"l2": 2, mine: 0.5, "random": 1}))
    for total, one, two, three in zip(made, *(scores(model, part) for part in ("l2", mine, "random")), strict=True):
        assert total == pytest.approx(2 * one / one.mean() + 0.5 * two / two.mean() + three / three.mean())


def test_a_product_multiplies_scores():
    model = net()
    for total, one, two in zip(
        scores(model, product("l1", mine)), scores(model, "l1"), scores(model, mine), strict=True
    ):
        assert total == pytest.approx(one * two)


def test_they_nest_and_rank_a_plan():
    model = net()
    both = weighted({product("l1", "l2"): 1, "fpgm": 0})
    removed = fxprune.analyze(model, X).plan(ratio=0.5, importance=both).removed
    assert removed == fxprune.analyze(model, X).plan(ratio=0.5, importance=product("l1", "l2")).removed
    group = fxprune.analyze(model, X).groups[0]
    assert both(group).tolist() == pytest.approx((scores(model, both)[0]).tolist())


@pytest.mark.parametrize("make", [lambda a, b: weighted({a: 1, b: 3}), product])
def test_names_that_need_data_are_measured(make):
    model = net()
    parts = [MEASURED["taylor"](model, [X], loss=loss), MEASURED["thinet"](model, [X])]
    wanted = fxprune.transform(model, X[:1], ratio=0.5, importance=make(*parts))
    made = fxprune.transform(
        model, X[:1], ratio=0.5, importance=make("taylor", "thinet"), data=iter([X]), loss=loss, repair=True
    )
    assert fxprune.record(made).removed == fxprune.record(wanted).removed
    with pytest.raises(PlanError, match='importance "thinet" needs data'):
        fxprune.analyze(model, X).plan(ratio=0.5, importance=make("l2", "thinet"))


def test_only_a_product_of_scores_that_compare_compares():
    assert comparable(product("lamp", "bn_scale"))
    assert not comparable(product("lamp", "l2"))
    assert not comparable(weighted({"lamp": 1}))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: weighted({}), "a weighted sum needs a dict"),
        (lambda: weighted(["l2"]), "a weighted sum needs a dict"),
        (lambda: weighted({"l2": float("nan")}), "a weight must be a finite number"),
        (lambda: weighted({"l2": "1"}), "a weight must be a finite number"),
        (lambda: weighted({3: 1}), "an importance cannot be a int"),
        (product, "a product needs importances"),
        (lambda: product("l2", 3), "an importance cannot be a int"),
    ],
)
def test_combinations_of_no_use_are_refused(make, text):
    with pytest.raises(PlanError, match=text):
        make()


def test_an_unknown_name_in_a_combination_is_refused():
    with pytest.raises(PlanError, match="unknown importance 'l3'"):
        scores(net(), product("l2", "l3"))
