"""Plans that drop branches: files, two in a row, differences, other weights."""

from __future__ import annotations

import json

import pytest
import torch

import fxprune
from fxprune.errors import PlanError
from fxprune.planning import plan_file
from tests.depth.models import Residuals, made
from tests.depth.test_drop import IMAGE, dropped_names


@pytest.fixture
def model():
    return made(Residuals)


@pytest.fixture
def x():
    return torch.randn(IMAGE, dtype=torch.double)


def test_a_file_holds_the_branches_and_gives_the_same_bytes(model, x, tmp_path):
    plan = fxprune.record(fxprune.transform(model, x, drop=["layer1.1", "layer2.0"], ratio=0.5)).plan
    plan.save(tmp_path / "a.json")
    again = fxprune.Plan.load(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert again == plan
    assert again.dropped == plan.dropped
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["version"] == 4
    assert [one["name"] for one in data["dropped"]] == ["layer1.1", "layer2.0"]
    other = made(Residuals, seed=1)
    small = fxprune.transform(other, x, plan=again)
    assert fxprune.verify(other, small, x) <= 1e-9
    assert dropped_names(small) == ["layer1.1", "layer2.0"]


def test_a_reader_that_knows_no_branches_refuses_the_file(model, x, tmp_path, monkeypatch):
    fxprune.record(fxprune.transform(model, x, drop="layer1.1")).plan.save(tmp_path / "a.json")
    monkeypatch.delitem(plan_file._NEEDED, plan_file.WITH_DROPPED)
    with pytest.raises(PlanError, match="version"):
        fxprune.Plan.load(tmp_path / "a.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["dropped"][0].pop("tensors"),
        lambda data: data["dropped"].append(data["dropped"][0]),
        lambda data: data["dropped"][0]["replaced"][0].update(kind="magic"),
        lambda data: data["dropped"][0]["replaced"][0].update(form=0),
        lambda data: data["dropped"].clear(),
        lambda data: data.pop("dropped"),
        lambda data: data.update(version=3),
    ],
)
def test_a_wrong_file_is_refused(model, x, tmp_path, change):
    fxprune.record(fxprune.transform(model, x, drop="layer1.1")).plan.save(tmp_path / "a.json")
    data = json.loads((tmp_path / "a.json").read_text())
    change(data)
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(PlanError):
        fxprune.Plan.load(tmp_path / "a.json")


def test_another_model_is_refused(model, x):
    plan = fxprune.record(fxprune.transform(model, x, drop="layer1.1")).plan
    small = fxprune.transform(model, x, plan=plan)
    with pytest.raises(PlanError, match="for another model"):
        fxprune.transform(small, x, plan=plan)


def test_two_plans_in_a_row_are_one(model, x):
    first = fxprune.transform(model, x, ratio=0.25)
    second = fxprune.transform(first, x, drop=["layer1.1", "layer2.0"], ratio=0.25)
    third = fxprune.transform(second, x, drop=["layer1.0"])
    record = fxprune.record(first).then(fxprune.record(second)).then(fxprune.record(third))
    assert [one.name for one in record.plan.dropped] == ["layer1.1", "layer2.0", "layer1.0"]
    at_once = fxprune.transform(model, x, plan=record.plan)
    assert all(torch.equal(t, third.state_dict()[n]) for n, t in at_once.state_dict().items())
    assert (at_once(x) - third(x)).abs().max() <= 1e-12


def test_differences_name_the_branches(model, x):
    one = fxprune.record(fxprune.transform(model, x, drop=["layer1.1", "layer2.0"])).plan
    other = fxprune.record(fxprune.transform(model, x, drop=["layer1.1", "layer2.1"])).plan
    diff = one.diff(other)
    assert (diff.dropped_first, diff.dropped_second) == (("layer2.0",), ("layer2.1",))
    assert bool(diff)
    assert "only the first drops layer2.0" in str(diff)
    assert not one.diff(one)
    channels = fxprune.record(fxprune.transform(model, x, ratio=0.5)).plan
    assert channels.diff(one).dropped_second == ("layer1.1", "layer2.0")


def test_a_saved_model_is_loaded_without_inputs(model, x, tmp_path):
    small = fxprune.transform(model, x, drop=["layer1.1", "layer2.0"], ratio=0.5)
    fxprune.save(small, tmp_path / "a.safetensors")
    for inputs in (None, x):
        again = fxprune.load(tmp_path / "a.safetensors", into=made(Residuals, seed=1), example_inputs=inputs)
        assert torch.equal(again(x), small(x))
        assert fxprune.record(again).plan == fxprune.record(small).plan
