"""Scores that are measured once, saved, loaded and used for any plan; scores that are given by name."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import fxprune
from fxprune.criteria import ChannelScores, load_scores, save_scores
from fxprune.errors import FileError, PlanError
from tests.support import randomise

X = torch.randn(8, 3, 8, 8)


def net(width=8):
    torch.manual_seed(0)
    made = nn.Sequential(
        *(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 6, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    )
    return randomise(made, 0).eval()


def loss(model, x):
    return model(x).square().mean()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize(
    ("importance", "more"),
    [("l1", {}), ("lamp", {}), ("taylor", {"data": [X], "loss": loss}), ("thinet", {"data": [X]})],
)
def test_saved_scores_give_the_plans_of_the_importance_for_any_budget(importance, more, scope, tmp_path):
    analysis = fxprune.analyze(net(), X[:1])
    path = tmp_path / "scores.json"
    save_scores(analysis.scores(importance, **more), path)
    for share in (0.3, 0.7):
        wanted = analysis.plan(keep={"macs": share}, scope=scope, importance=importance, **more).removed
        assert analysis.plan(keep={"macs": share}, scope=scope, scores=str(path)).removed == wanted
        assert analysis.plan(keep={"macs": share}, scope=scope, scores=load_scores(path)).removed == wanted
        for way in ("eager", "fx", "export"):
            small = fxprune.transform(net(), X[:1], keep={"macs": share}, scope=scope, scores=path, path=way)
            assert fxprune.record(small).removed["0.weight"] == wanted["0.weight"]


def test_a_file_holds_the_same_numbers(tmp_path):
    scores = fxprune.analyze(net(), X[:1]).scores("l2")
    save_scores(scores, tmp_path / "a.json")
    again = load_scores(tmp_path / "a.json")
    assert again.groups == scores.groups
    assert (again.importance, again.comparable, again.missing) == ("l2", False, {})
    save_scores(again, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_infinite_scores_keep_their_order(tmp_path):
    analysis = fxprune.analyze(net(), X[:1])
    first = analysis.groups[0]
    mine = {first.name: [float("inf"), 1, 2, -float("inf"), 3, 4, 5, 6], "3": range(6)}
    save_scores(analysis.scores(mine), tmp_path / "scores.json")
    plan = analysis.plan(ratio=0.25, scores=tmp_path / "scores.json")
    assert plan.removed["0.weight"] == {0: [1, 3]}


def test_groups_that_cannot_be_ranked_are_named_with_the_reason():
    analysis = fxprune.analyze(net(), X[:1])
    scores = analysis.scores("bn_scale")
    assert list(scores.missing) == ["3:channels@3.weight[0]"]
    assert (
        analysis.plan(ratio={"0": 0.5}, scores=scores).removed
        == analysis.plan(ratio={"0": 0.5}, importance="bn_scale").removed
    )
    with pytest.raises(PlanError, match="bn_scale cannot rank a group without a batch norm"):
        analysis.plan(ratio=0.5, scores=scores)


def older(scores, path):
    """The scores as an older fxprune has saved them."""
    save_scores(scores, path)
    data = json.loads(path.read_text())
    del data["parameters"]
    path.write_text(json.dumps({**data, "schema": "fxprune.scores/1"}))
    return load_scores(path)


def test_scores_of_another_model_are_refused(tmp_path):
    scores = fxprune.analyze(net(), X[:1]).scores("l2")
    other = nn.Sequential(nn.Identity(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    wrong = [(net(12), X[:1], "its shape was [8, 3, 3, 3] there, and is [12, 3, 3, 3]")]
    wrong += [(other, torch.randn(1, 3), "its shape was [8] there, and is [4, 3]")]
    wrong += [(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 3), "[4, 3]")]
    wrong += [(nn.Sequential(*net(), nn.ReLU(), nn.Linear(5, 2)), X[:1], "that one has no such parameter")]
    for model, x, why in wrong:
        for options in ({"scores": scores}, {"importance": scores}):
            with pytest.raises(PlanError, match="the scores were measured on another model") as caught:
                fxprune.transform(model, x, ratio=0.5, **options)
            assert why in caught.value.why
    before = older(scores, tmp_path / "scores.json")
    with pytest.raises(PlanError, match="the scores are of other channels") as caught:
        fxprune.analyze(net(12), X[:1]).plan(ratio=0.5, scores=before)
    assert caught.value.why == "it has 12 channels in 12 slots; the scores are of 8 channels in 8 slots"
    with pytest.raises(PlanError, match="the scores were made of another model"):
        fxprune.analyze(other, torch.randn(1, 3)).plan(ratio=0.5, scores=before)


def test_scores_of_other_weights_are_used_with_a_warning(tmp_path):
    model = net()
    scores = fxprune.analyze(model, X[:1]).scores("l2")
    save_scores(scores, tmp_path / "scores.json")
    for same in (model, copy.deepcopy(model).double(), copy.deepcopy(model).half(), nn.Sequential(*model)):
        fxprune.analyze(same, X[:1].to(same[0].weight.dtype)).plan(ratio=0.5, scores=tmp_path / "scores.json")
    trained, permuted = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        trained[3].weight += 0.1 * torch.randn_like(trained[3].weight)
        permuted[0].weight.copy_(permuted[0].weight.flip(0))
    for other, name in ((trained, "3.weight"), (permuted, "0.weight")):
        with pytest.warns(fxprune.OtherWeightsWarning, match=f'"{name}"') as caught:
            plan = fxprune.analyze(other, X[:1]).plan(ratio=0.5, scores=tmp_path / "scores.json")
        assert caught[0].filename == __file__
        assert plan.removed == fxprune.analyze(model, X[:1]).plan(ratio=0.5).removed
    assert fxprune.analyze(trained, X[:1]).plan(ratio=0.5, scores=older(scores, tmp_path / "old.json")).removed


def test_scores_serve_a_model_without_some_branches():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.first(x)
            return self.last(x + self.block(x))

    model, x = Residual().eval(), torch.randn(2, 4)
    scores = fxprune.analyze(model, x).scores("l2")
    small = fxprune.transform(model, x, ratio=0.5, scores=scores, drop=["block"])
    assert small.first.out_features == 4


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"scores": 3}, "scores cannot be a int"),
        ({"scores": {"0": [1.0]}}, "scores cannot be a dict"),
        ({"importance": "l1", "scores": ChannelScores({})}, "an importance and scores were given"),
        ({"scores": ChannelScores({}), "data": [X]}, "data is without effect here"),
        ({"scores": ChannelScores({})}, "there are no scores of a group"),
    ],
)
def test_scores_of_no_use_are_refused(given, text):
    with pytest.raises(PlanError, match=text):
        fxprune.transform(net(), X[:1], ratio=0.5, **given)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data.update(schema="fxprune.scores/9"), "it must be one of"),
        (lambda data: data.pop("groups"), 'the key "groups" is missing'),
        (lambda data: data.update(comparable=1), "it must be true or false"),
        (lambda data: data["groups"]["0:channels@0.weight[0]"]["slots"].pop(), "as many slots as scores"),
        (lambda data: data["groups"]["0:channels@0.weight[0]"].update(scores=["a"] * 8), "it must be a number"),
        (lambda data: data.update(more=1), 'nothing is known of the key "more"'),
    ],
)
def test_files_that_are_no_scores_are_refused(change, text, tmp_path):
    path = tmp_path / "scores.json"
    save_scores(fxprune.analyze(net(), X[:1]).scores("l2"), path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(FileError, match=text):
        load_scores(path)


def test_a_mapping_ranks_the_groups_that_its_patterns_name():
    analysis = fxprune.analyze(net(), X[:1])
    first, second = analysis.groups
    scores = {"0": torch.arange(8.0), second.key: [5, 4, 3, 2, 1, 0]}
    plan = analysis.plan(ratio=0.5, importance=scores)
    assert (plan.removed["0.weight"], plan.removed["3.weight"][0]) == ({0: [0, 1, 2, 3]}, [3, 4, 5])
    assert analysis.plan(ratio=0.5, importance={first.name: range(8), "3": range(5, -1, -1)}).removed == plan.removed
    assert analysis.plan(ratio=0.5, scores=analysis.scores(scores)).removed == plan.removed
    small = fxprune.transform(net(), X[:1], ratio=0.5, importance=scores)
    assert fxprune.record(small).removed == plan.removed
    assert analysis.plan(ratio={"0": 0.5}, importance={"0": range(8)}).removed["0.weight"] == {0: [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("importance", "text"),
    [
        ({"0": range(8)}, "at   group \"3\"\n  why  no key of the importance names it: '0'"),
        ({}, "it is empty"),
        ({"0": range(7), "3": range(6)}, "importance has the wrong shape"),
        ({"0": [float("nan")] * 8, "3": range(6)}, "importance is NaN"),
        ({"0": "a", "3": range(6)}, "importance raises, or returns no numbers"),
        ({"conv9": range(8)}, "conv9"),
    ],
)
def test_mappings_of_no_use_are_refused(importance, text):
    with pytest.raises(PlanError) as caught:
        fxprune.analyze(net(), X[:1]).plan(ratio=0.5, importance=importance)
    assert text in str(caught.value)


def test_a_file_of_scores_that_is_not_there_is_named(tmp_path):
    net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    with pytest.raises(fxprune.FileError, match="the file of scores cannot be read") as caught:
        fxprune.transform(net, x, keep={"macs": 0.5}, scores=tmp_path / "none.json")
    assert "none.json" in str(caught.value)
    assert "there is no file" in str(caught.value)
