"""The norms of a plan: a plan of `norms="preserve"` makes the same model again, from anywhere."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.planning import plan_file


class Normed(nn.Module):
    """A layer norm and an RMS norm over channels that go."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.ln = nn.Linear(5, 12), nn.LayerNorm(12)
        self.second, self.rms = nn.Linear(12, 12), nn.RMSNorm(12, eps=1e-3)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rms(self.second(self.ln(self.first(x)))))


X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def net(seed: int = 0) -> Normed:
    torch.manual_seed(seed)
    return Normed().double().eval()


def preserved() -> tuple[nn.Module, Any]:
    small = fxprune.transform(net(), X, ratio=0.5, norms="preserve")
    return small, fxprune.record(small).plan


def through_json(plan: Any, folder: Path) -> Any:
    plan.save(folder / "plan.json")
    return fxprune.Plan.load(folder / "plan.json")


def through_a_file(plan: Any, folder: Path) -> Any:
    fxprune.save(fxprune.transform(net(), X, plan=plan), folder / "small.safetensors")
    return fxprune.record(fxprune.load(folder / "small.safetensors", into=net(), example_inputs=X)).plan


@pytest.mark.parametrize(
    "passed_on", [lambda plan, _: plan, through_json, through_a_file, lambda plan, _: pickle.loads(pickle.dumps(plan))]
)
def test_a_plan_makes_the_same_norms_again(passed_on: Any, tmp_path: Path) -> None:
    small, plan = preserved()
    again = fxprune.transform(net(seed=1), X, plan=passed_on(plan, tmp_path))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(X), small(X))
    assert fxprune.record(again).norms == fxprune.record(again).plan.norms == "preserve"
    assert fxprune.record(again).exact


def test_an_analysis_applies_the_norms_of_a_plan() -> None:
    small, plan = preserved()
    assert torch.equal(fxprune.analyze(net(), X).transform(plan)(X), small(X))
    made = fxprune.analyze(net(), X, norms="preserve").plan(ratio=0.5)
    assert torch.equal(fxprune.transform(net(), X, plan=made)(X), small(X))


def test_norms_that_are_given_decide_and_the_record_says_so() -> None:
    _, plan = preserved()
    other = fxprune.record(fxprune.transform(net(), X, plan=plan, norms="kept"))
    text = 'the plan was made with norms="preserve", and norms="kept" was given, which decides'
    assert (other.norms, other.plan.norms) == ("kept", "kept")
    assert text in other.reasons
    same = fxprune.record(fxprune.transform(net(), X, plan=other.plan, norms="preserve"))
    assert same.norms == "preserve"
    assert not any("decides" in reason for reason in same.reasons)


def test_files_from_before_plans_had_norms(tmp_path: Path) -> None:
    """Their version is one that an old reader takes; what only `preserve` changes tells the norms."""
    _, plan = preserved()
    old = plan_file.data_of(replace(plan, norms="kept"))
    assert old["version"] < plan_file.WITH_NORMS
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert fxprune.Plan.load(tmp_path / "old.json") == plan
    kept = fxprune.record(fxprune.transform(net(), X, ratio=0.5)).plan
    assert "norms" not in plan_file.data_of(kept)
    assert through_json(kept, tmp_path).norms == "kept"


def test_diff_tells_norms() -> None:
    _, plan = preserved()
    kept = fxprune.analyze(net(), X).plan(ratio=0.5)
    assert plan.diff(kept)
    assert str(plan.diff(kept)) == 'norms: "preserve" in the first, "kept" in the second'
    assert not plan.diff(fxprune.Plan(plan.removed)), "a plan that was written by hand says nothing of norms"


def test_then_joins_plans_of_the_same_norms_alone() -> None:
    small, plan = preserved()
    twice = fxprune.transform(small, X, ratio=0.5, norms="preserve")
    both = plan.then(fxprune.record(twice).plan)
    assert both.norms == "preserve"
    assert (fxprune.transform(net(), X, plan=both)(X) - twice(X)).abs().max() < 1e-12
    with pytest.raises(fxprune.PlanError, match='first was made with norms="preserve", the second with "kept"'):
        plan.then(fxprune.analyze(small, X).plan(ratio=0.5))


def test_weights_that_are_multiplied_are_named() -> None:
    small, _ = preserved()
    (told,) = (reason for reason in fxprune.record(small).reasons if "multiplies" in reason)
    assert "multiplies rms.weight by sqrt(old width / new width)" in told
    assert "gradients of these weights are divided by the root" in told
    kept = fxprune.record(fxprune.transform(net(), X, ratio=0.5))
    assert not any("multiplies" in reason for reason in kept.reasons)
