"""Every criterion: scores computed by hand, a docstring that names its source, a line in docs/criteria.md."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.criteria import (
    CRITERIA,
    MEASURED,
    by_group,
    criterion,
    lp,
    measured,
    norm_scores,
    scores_of,
    taylor_scores,
)
from fxprune.errors import PlanError
from tests.criteria.names import OF_EXPERTS

PAGE = Path(__file__).parents[2] / "docs" / "criteria.md"
X = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


def net():
    """Three channels between two linear layers: filters (3, 4), (0, 1), (-1, 0), read with 12, 0, -2."""
    made = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double().eval()
    with torch.no_grad():
        made[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [-1.0, 0.0]]))
        made[2].weight.copy_(torch.tensor([[12.0, 0.0, -2.0]]))
    return made


def normed():
    """The same, with a batch norm behind the first layer."""
    made = nn.Sequential(*net())
    norm = nn.BatchNorm1d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -0.5, 1.0]))
    made.insert(1, norm)
    return made.eval()


def total(model, x):
    return model(x).sum()


BY_NAME = {
    "l1": [3 + 4 + 12, 1, 1 + 2],
    "l2": [13, 1, 5**0.5],  # 13^2 = 3^2 + 4^2 + 12^2
    "fpgm": [18**0.5 + 32**0.5, 18**0.5 + 2**0.5, 32**0.5 + 2**0.5],
    "lamp": [1, 1 / 175, 5 / 174],  # squares 169, 1, 5
    "bn_scale": [2, 0.5, 1],
    "random": np.random.default_rng(3).random(3).tolist(),
}
FROM_DATA = {
    # after the ReLU the rows of X are (3, 0, 0) and (4, 1, 0): nothing is added to the output by the last two
    "thinet": (lambda model: MEASURED["thinet"](model, [X], samples=20), [2, 0, 1]),
    # only channel 0 is active and read: its gradient is 12 in each of its two weights, 3 and 4
    "taylor": (lambda model: MEASURED["taylor"](model, [X], loss=total), [12 * (3 + 4), 0, 0]),
    # each row has that gradient in one of the two weights: the mean over rows of its square is 144 / 2
    "fisher": (lambda model: MEASURED["fisher"](model, [X], loss=total), [144 / 2 * (9 + 16) / 2, 0, 0]),
    # channel 1 goes first: it is read with 0. With r added to the second moments 25, 1, 0 and no others to make up for
    # them, channels 2 and 0 then lose 2^2 r and 12^2 (25 + r) of 12^2 * 25
    "obs": (
        lambda model: MEASURED["obs"](model, [X]),
        [12**2 * (25 + 0.26 / 3) / 3600, 0, 4 * 0.26 / 3 / 3600],
    ),
    # one gate on channel 0 changes the output of the rows by 12 * 3 and 12 * 4
    "fisher_gate": (lambda model: MEASURED["fisher_gate"](model, [X], loss=total), [(36**2 + 48**2) / 2 / 2, 0, 0]),
    # after the ReLU the rows of X are (3, 0, 0) and (4, 1, 0)
    "apoz": (lambda model: MEASURED["apoz"](model, [X]), [1, 0.5, 0]),
    "activation_mean": (lambda model: MEASURED["activation_mean"](model, [X]), [3.5, 0.5, 0]),
    "activation_variance": (lambda model: MEASURED["activation_variance"](model, [X]), [0.25, 0.25, 0]),
    # before the ReLU channel 0 is active in both rows, channel 1 in the second, channel 2 in none; one input is active
    # in each row, and the output in both
    "coactivation": (lambda model: MEASURED["coactivation"](model, [X]), [(0.5 + 1) / 2, (0.25 + 0.5) / 2, 0]),
}


def findings_of(model, x=X):
    return fxprune.analyze(model, x).groups[0]._findings


def scores(model, importance, seed=3):
    findings = findings_of(model)
    return scores_of(findings, importance, findings.groups, seed).tolist()


def test_every_criterion_has_a_row_here():
    assert sorted(BY_NAME) == sorted(CRITERIA)
    assert sorted({*FROM_DATA, *OF_EXPERTS, "activation_rank"}) == sorted(MEASURED)


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_of_criteria_by_name_are_those_computed_by_hand(name):
    model = normed() if name == "bn_scale" else net()
    assert scores(model, name) == pytest.approx(BY_NAME[name], rel=1e-6)


@pytest.mark.parametrize("name", FROM_DATA)
def test_scores_of_criteria_from_data_are_those_computed_by_hand(name):
    make, expected = FROM_DATA[name]
    model = net()
    assert scores(model, make(model)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("function", [*CRITERIA.values(), *MEASURED.values()], ids=lambda f: f.__name__)
def test_every_docstring_names_its_source(function):
    assert re.search(r"\b(19|20)\d\d\b", inspect.getdoc(function)), "name the authors and the year"


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_by_name_has_a_line_on_its_page(name):
    assert re.search(rf'^\| `"{name}"` \|', PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", MEASURED)
def test_every_criterion_from_data_has_a_line_on_its_page(name):
    assert re.search(rf'^\| `"{name}"` \| `{MEASURED[name].__name__}\(', PAGE.read_text(), re.MULTILINE)


def test_the_page_lists_no_other_criterion():
    assert len(re.findall(r'^\| `"', PAGE.read_text(), re.MULTILINE)) == len(CRITERIA) + len(MEASURED)


def test_a_name_added_to_the_table_can_be_passed_as_importance(monkeypatch):
    monkeypatch.setitem(CRITERIA, "last", by_group(lambda group: [-i for i in range(group.size)]))
    assert fxprune.analyze(net(), X).plan(ratio=1 / 3, importance="last").removed["0.weight"] == {0: [2]}
    assert scores(net(), "last") == [0, -1, -2]


@pytest.mark.parametrize("importance", ["l3", ["l1"], None])
def test_an_unknown_importance_is_refused_with_the_names_there_are(importance):
    with pytest.raises(PlanError, match=r"unknown importance") as caught:
        scores(net(), importance)
    assert (
        f"use one of {', '.join(CRITERIA)}; one of {', '.join(MEASURED)} with `data=`; or a callable" in caught.value.do
    )


def test_a_criterion_that_needs_data_says_so_where_none_can_be_given():
    with pytest.raises(PlanError, match='importance "thinet" needs data'):
        scores(net(), "thinet")


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm"])
def test_criteria_that_read_weights_refuse_a_model_without_values(name):
    model = net().to("meta")
    findings = findings_of(model, X.to("meta"))
    with pytest.raises(PlanError, match=f'importance "{name}" needs weights'):
        scores_of(findings, name, findings.groups, None)


@pytest.mark.parametrize("name", ["l1", "l2", "fpgm"])
def test_weights_that_are_nan_are_refused_by_name(name):
    model = net()
    with torch.no_grad():
        model[0].weight[1, 1] = torch.nan
    with pytest.raises(PlanError, match="the weights contain NaN") as caught:
        scores(model, name)
    assert caught.value.at == "0.weight"


def test_norm_scores_are_those_of_the_names():
    findings = findings_of(net())
    for p in (1, 2):
        assert norm_scores(findings, p).tolist() == scores(net(), f"l{p}")


def test_activation_rank_is_the_mean_rank_of_the_maps_of_each_sample():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, 0.0, 2.0]))
    ramp = torch.outer(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, -1.0]))
    x = torch.stack([torch.eye(3), ramp])[:, None]  # after the ReLU: ranks 3, 0, 1 and 1, 1, 1
    made = fxprune.analyze(model, x).groups[0]
    assert MEASURED["activation_rank"](model, [x[:1], x[1:]])(made).tolist() == [2, 0.5, 1]
    with pytest.raises(PlanError, match="no layer of the model has ranks of maps"):
        scores(net(), MEASURED["activation_rank"](net(), [X]))


def test_an_error_names_all_groups_that_an_importance_cannot_rank():
    layers = [nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 2)]
    model, x = nn.Sequential(*layers).eval(), torch.randn(8, 3)
    analysis = fxprune.analyze(model, x)
    with pytest.raises(
        PlanError, match=r'at   groups "0", "4"\n(.|\n)*of "0": no activation(.|\n)*are ignore=\["0", "4"\]'
    ):
        analysis.plan(ratio=0.5, importance="apoz", data=[x])
    with pytest.raises(PlanError, match=r'at   group "0"\n(.|\n)*leave the group out with ignore$'):
        analysis.plan(ratio=0.5, importance="apoz", data=[x], ignore=["4"])
    assert analysis.plan(ratio=0.5, importance="apoz", data=[x], ignore=["0", "4"]).removed


@pytest.mark.parametrize("p", [0.5, 1, 2, 3.5])
def test_lp_is_the_norm_of_all_elements_that_go_with_a_channel(p):
    model = normed()
    of = [t.tolist() for t in (model[0].weight, model[1].weight[:, None], model[1].bias[:, None], model[3].weight.T)]
    made = [sum(abs(w) ** p for rows in of for w in rows[c]) ** (1 / p) for c in range(3)]
    assert scores(model, lp(p)) == pytest.approx(made, rel=1e-12)
    assert norm_scores(findings_of(model), p).tolist() == pytest.approx(made, rel=1e-6)


@pytest.mark.parametrize("p", [0, -1, float("nan"), float("inf")])
def test_norms_refuse_a_p_that_is_not_positive(p):
    with pytest.raises(PlanError, match="p must be a positive number"):
        lp(p)


def test_taylor_scores_sum_the_products_of_weight_and_gradient():
    weight, gradient = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    expected = [float((weight[:, o].double() * gradient[:, o].double()).abs().sum()) for o in range(3)]
    assert taylor_scores(weight, gradient, 1).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_criterion_touches_one_file():
    """The names of criteria stand nowhere in the package but in the decorators of their own files."""
    package = Path(fxprune.__file__).parent
    where = {name: set() for name in (*CRITERIA, *MEASURED)}
    for path in package.rglob("*.py"):
        for name in re.findall(r'@(?:criterion|measured)\("(\w+)"', path.read_text()):
            where[name].add(path)
    assert all(len(files) == 1 for files in where.values()), where
    for path in (package / "criteria" / "scores.py", package / "criteria" / "table.py"):
        assert not re.search("|".join(f'"{name}"' for name in where), path.read_text())


@pytest.mark.parametrize(("decorator", "name"), [(criterion, "l2"), (measured, "thinet")])
def test_the_name_of_a_criterion_is_taken_once(decorator, name):
    with pytest.raises(PlanError, match=rf"there is a criterion '{name}' already\s+at\s+fxprune.criteria"):
        decorator(name)(lambda *arguments: None)


def test_bn_scale_names_all_groups_without_a_batch_norm():
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1)),
        *(nn.ReLU(), nn.Conv2d(4, 2, 1)),
    )
    analysis = fxprune.analyze(net.eval(), torch.randn(1, 3, 4, 4))
    with pytest.raises(fxprune.PlanError, match="cannot rank a group without") as caught:
        analysis.plan(ratio=0.5, importance="bn_scale")
    assert caught.value.at == 'groups "3", "5"'
    plan = analysis.plan(ratio=0.5, importance="bn_scale", ignore=["3", "5"])
    assert "0.weight" in plan.removed
    assert 'ignore=["3", "5"]' in caught.value.do
