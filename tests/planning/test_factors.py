"""Factors in plans: their file, one plan for two prunings, and other weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.planning.factors import Factor, Products


class Attention(nn.Module):
    """Attention whose scale follows from its head width."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 8
        self.qkv, self.o = nn.Linear(12, 3 * 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], -1))


X = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def model(seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    return Attention().double().eval()


def pruned(net: nn.Module, ratio: float = 0.25, **options: Any) -> nn.Module:
    options = {"path": "eager", "importance": "random", "seed": 0} | options
    return fxprune.transform(net, X, ratio=ratio, **options)


def plan_of(small: nn.Module) -> fxprune.Plan:
    return fxprune.record(small).plan


def close(first: nn.Module, second: nn.Module) -> bool:
    state = second.state_dict()
    return all(torch.allclose(t, state[name], rtol=1e-13) for name, t in first.state_dict().items())


def test_a_file_with_factors_has_a_version_that_older_readers_refuse(tmp_path: Path) -> None:
    plan, path = plan_of(pruned(model())), tmp_path / "plan.json"
    plan.save(path)
    data = json.loads(path.read_text())
    assert data["version"] == 2
    assert [(entry["tensor"], entry["dim"]) for entry in data["factors"]] == [("qkv.bias", 0), ("qkv.weight", 0)]
    assert fxprune.Plan.load(path) == plan
    without = tmp_path / "without.json"
    fxprune.analyze(model(), X).plan(ratio=0.25).save(without)
    assert json.loads(without.read_text())["version"] == 1
    assert "factors" not in json.loads(without.read_text())


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("tensor", "qkv.scale", '"tensors" has no such key'),
        ("dim", 2, "an integer from 0 to 1"),
        ("slots", "0-72", "index 72 is out of range"),
        ("slots", "", "no index is named"),
        ("factor", 0, "a factor is positive and not 1"),
        ("factor", 1, "a factor is positive and not 1"),
        ("factor", "2", "it must be a number"),
    ],
)
def test_wrong_factors_in_a_file_are_refused(tmp_path: Path, key: str, value: Any, why: str) -> None:
    plan, path = plan_of(pruned(model())), tmp_path / "plan.json"
    plan.save(path)
    data = json.loads(path.read_text())
    data["factors"][1][key] = value
    path.write_text(json.dumps(data))
    with pytest.raises(fxprune.PlanError, match=re.escape(why)):
        fxprune.Plan.load(path)


def test_no_factors_and_the_same_place_twice_are_refused(tmp_path: Path) -> None:
    plan, path = plan_of(pruned(model())), tmp_path / "plan.json"
    plan.save(path)
    data = json.loads(path.read_text())
    for factors, why in (([], "a file of version 2 has factors"), ([data["factors"][0]] * 2, "stands here twice")):
        path.write_text(json.dumps(data | {"factors": factors}))
        with pytest.raises(fxprune.PlanError, match=why):
            fxprune.Plan.load(path)


def test_a_plan_applied_to_other_weights_multiplies_them_too(tmp_path: Path) -> None:
    plan, other = plan_of(pruned(model())), model(seed=1)
    plan.save(tmp_path / "plan.json")
    small = fxprune.transform(other, X, plan=fxprune.Plan.load(tmp_path / "plan.json"))
    assert plan_of(small) == plan
    with torch.no_grad():
        assert torch.allclose(small(X), fxprune.masked(other, plan.removed)(X), rtol=1e-12, atol=1e-13)


def test_factors_of_two_prunings_are_multiplied_in_the_numbering_of_the_first() -> None:
    net = model()
    first = pruned(net)
    second = pruned(first, ratio=0.5, seed=1)
    both = plan_of(first).then(plan_of(second))
    at_once = fxprune.transform(net, X, plan=both)
    assert [f.tensor for f in both.factors] == ["qkv.bias", "qkv.weight"]
    assert [f.factor for f in both.factors] == pytest.approx([(second.head_dim / 8) ** 0.5] * 2, rel=1e-12)
    assert [f.slots for f in both.factors] == [f.slots for f in plan_of(at_once).factors]
    assert close(second, at_once)


def test_a_difference_names_factors_where_both_plans_know_theirs() -> None:
    first, second = plan_of(pruned(model())), plan_of(pruned(model(), ratio=0.5))
    assert not first.diff(first)
    found = first.diff(second)
    assert found.factors_first == first.factors
    assert found.factors_second == second.factors
    assert f"only the first: {first.factors[0]}" in str(found)
    unknown = fxprune.analyze(model(), X, path="eager").plan(ratio=0.25, importance="random", seed=0)
    assert not unknown.diff(first), "a plan knows its factors after a rewrite"


def test_products_of_factors() -> None:
    products = Products({"a": (6, 2), "b": ()}, {"a": {0: [5]}})
    products.add(Factor("a", 0, (0, 1, 2), 0.5))
    products.add(Factor("a", 0, None, 3.0))
    products.add(Factor("b", 0, None, 2.0))
    products.add(Factor("b", 0, None, 0.5))
    assert products.factors() == (Factor("a", 0, (0, 1, 2), 1.5), Factor("a", 0, (3, 4), 3.0))
    products.add(Factor("a", 0, (3, 4), 0.5))
    assert products.factors() == (Factor("a", 0, None, 1.5),), "removed slots do not count"
