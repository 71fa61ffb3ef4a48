"""Branches that a budget takes: where that is the better choice by what was measured, and only then."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import fxprune
from fxprune._drop import find_branches
from fxprune._find import AnalyzeArguments
from fxprune._search.depth import _counts, influences
from fxprune._search.samples import samples_of
from fxprune.errors import BudgetMissedWarning, FileError
from tests.depth.models import made
from tests.depth.test_drop import dropped_names, zeroing


class Thin(nn.Module):
    """A block of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.g(torch.relu(self.f(x))))


class Deep(nn.Module):
    """Three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.blocks = nn.Sequential(*[Thin() for _ in range(3)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)))


def deep(*faint: int) -> nn.Module:
    """The model, in which these blocks add next to nothing."""
    model = made(Deep)
    with torch.no_grad():
        for number in faint:
            model.blocks[number].g.weight.mul_(1e-3)
            model.blocks[number].g.bias.mul_(1e-3)
    return model


def batches() -> list[torch.Tensor]:
    return list(torch.randn(64, 4, dtype=torch.double).split(8))


X = (4, 4)


def test_branches_that_add_nothing_go_before_any_channel_does():
    model, x = deep(1, 2), torch.randn(X, dtype=torch.double)
    data = batches()
    thin = fxprune.transform(model, x, keep={"macs": 0.55}, repair=data)
    small = fxprune.transform(model, x, keep={"macs": 0.55}, repair=data, depth=True)
    assert dropped_names(small) == ["blocks.1", "blocks.2"]
    before, after = fxprune.record(small).cost
    assert after.macs <= 0.55 * before.macs
    test = torch.randn(32, 4, dtype=torch.double)
    assert (small(test) - model(test)).norm() < 0.5 * (thin(test) - model(test)).norm()
    assert any(reason.startswith("depth: ") and "blocks.1" in reason for reason in fxprune.record(small).reasons)


def test_data_alone_are_enough():
    model, x = deep(2), torch.randn(X, dtype=torch.double)
    small = fxprune.transform(model, x, keep={"macs": 0.8}, data=batches(), depth=True)
    assert "blocks.2" in dropped_names(small)
    assert fxprune.record(small).repair is None


def test_named_branches_go_in_any_case():
    model, x = deep(2), torch.randn(X, dtype=torch.double)
    small = fxprune.transform(model, x, keep={"params": 0.5}, data=batches(), depth=True, drop="blocks.0")
    assert {"blocks.0", "blocks.2"} <= set(dropped_names(small))


def test_no_branch_goes_where_channels_are_the_better_choice():
    model, x = deep(), torch.randn(X, dtype=torch.double)
    with torch.no_grad():
        for block in model.blocks:
            block.f.weight[2:] = block.f.bias[2:] = 0
    data = batches()
    small = fxprune.transform(model, x, keep={"macs": 0.8}, repair=data, depth=True)
    assert dropped_names(small) == []
    assert any("that with all branches is best" in reason for reason in fxprune.record(small).reasons)


def test_a_search_goes_on_from_the_branches_that_were_chosen():
    model, x = deep(1), torch.randn(X, dtype=torch.double)
    options = {"keep": {"macs": 0.7}, "repair": batches(), "depth": True}
    small = fxprune.transform(model, x, scope="search", search={"steps": 2}, **options)
    assert "blocks.1" in dropped_names(small)
    assert any(reason.startswith("the search measured") for reason in fxprune.record(small).reasons)
    before, after = fxprune.record(small).cost
    assert after.macs <= 0.7 * before.macs


def test_the_influence_of_a_branch_is_the_change_of_the_outputs_without_it():
    model = deep(1)
    data = batches()
    found = find_branches(AnalyzeArguments(model, data[0]))
    samples = samples_of(model, data, None, judge=True)
    measured = influences(model, found.branches, samples)
    parts = [args[0] for args, _ in samples.repairing[:4]]
    reference = zeroing(deep(1), ["blocks.2.g"])
    with torch.no_grad():
        wanted, got = torch.stack([model(p) for p in parts]), torch.stack([reference(p) for p in parts])
    sizes = wanted.square().sum(2)
    wanted_change = ((got - wanted).square().sum(2) / sizes.clamp(min=sizes.mean(1, keepdim=True) / 10)).mean()
    assert measured["blocks.2"] == pytest.approx(float(wanted_change), rel=1e-6)
    assert measured["blocks.1"] < 1e-3 * measured["blocks.2"]


def test_a_model_without_branches_says_so():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    small = fxprune.transform(model, x, keep={"macs": 0.5}, data=[torch.randn(8, 4)], depth=True)
    assert any("no residual branch" in reason for reason in fxprune.record(small).reasons)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.5, "depth": True}, "without effect"),
        ({"keep": {"macs": 0.5}, "depth": True}, "needs data"),
        ({"keep": {"macs": 0.5}, "depth": 3}, "depth"),
    ],
)
def test_a_depth_that_cannot_be_meant_is_refused(options, words):
    with pytest.raises(fxprune.FxpruneError, match=words):
        fxprune.transform(deep(), torch.randn(X, dtype=torch.double), **options)


def test_every_number_of_branches_up_to_four_is_tried_and_the_last():
    assert [list(_counts(n)) for n in (0, 1, 5, 14)] == [[0], [0, 1], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 6, 8, 11, 14]]


def test_a_budget_that_no_model_meets_is_reported_against_the_original():
    model, x = deep(), torch.randn(X, dtype=torch.double)
    whole = fxprune.cost(model, x).macs
    with pytest.warns(BudgetMissedWarning, match=f"of {whole:,}"):
        fxprune.transform(model, x, keep={"macs": 0.01}, max_ratio=0.25, drop="blocks.0")


def test_nothing_is_searched_where_the_branches_meet_the_budget():
    model, x = deep(), torch.randn(X, dtype=torch.double)
    options = {"keep": {"macs": 0.95}, "repair": batches(), "scope": "search", "search": {"steps": 1}}
    small = fxprune.transform(model, x, drop="blocks.0", **options)
    assert dropped_names(small) == ["blocks.0"]
    assert fxprune.record(small).removed == {}


@pytest.mark.parametrize("option", [{"ignore": "blocks.1.f"}, {"counts": {"blocks.1.f": 8}}])
def test_a_branch_that_an_option_names_stays(option):
    small = fxprune.transform(
        deep(1, 2), torch.zeros(X).double(), keep={"macs": 0.6}, depth=True, repair=batches(), **option
    )
    assert dropped_names(small) == ["blocks.2"]
    (name,) = option
    (text,) = [reason for reason in fxprune.record(small).reasons if "depth" in reason]
    assert f'branch blocks.1 stays: {name} names "blocks.1.f"' in text


def test_a_choice_of_branches_that_was_interrupted_goes_on_from_its_file(tmp_path):
    model, calls = deep(1), [3]
    wanted = model(torch.linspace(-1, 1, 32).double().view(8, 4)).detach()

    def score(small):
        if not calls[0]:
            raise KeyboardInterrupt
        calls[0] -= 1
        return -float((small(torch.linspace(-1, 1, 32).double().view(8, 4)) - wanted).square().mean().detach())

    search = {"steps": 2, "score": score, "file": tmp_path / "run.json"}
    options = {"keep": {"macs": 0.5}, "depth": True, "scope": "search", "repair": batches()}
    with pytest.raises(KeyboardInterrupt):
        fxprune.transform(model, torch.zeros(X).double(), search=search, **options)
    file = tmp_path / "run.branches.json"
    assert len(json.loads(file.read_text())["steps"]) == 3
    calls[0] = 100
    first = fxprune.transform(model, torch.zeros(X).double(), search=search, **options)
    needed, known = 100 - calls[0], len(json.loads(file.read_text())["steps"])
    again = fxprune.transform(model, torch.zeros(X).double(), search={**search, "file": None}, **options)
    assert 100 - calls[0] == needed + needed + 3  # the three that were known are measured again without the file
    assert dropped_names(first) == dropped_names(again)
    calls[0] = 0
    third = fxprune.transform(model, torch.zeros(X).double(), search=search, **options)
    assert dropped_names(third) == dropped_names(first)
    assert known > 3
    with pytest.raises(FileError, match="is of another run"):
        fxprune.transform(model, torch.zeros(X).double(), search=search, **{**options, "keep": {"macs": 0.6}})
