"""The record of a model that got smaller in several steps: one record since the model that was given."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune._record import steps_in
from tests.follow.nets import Net, Residual, batch, net, step


def gradual(model: nn.Module, *, train: bool = True, steps: int = 3) -> fxprune.GradualPruner:
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pruner = fxprune.GradualPruner(model, batch(0), keep={"macs": 0.25}, steps=steps, optimizer=optimizer)
    while not pruner.done:
        pruner.step()
        if train:
            step(model, optimizer, pruner.number)
    return pruner


def test_the_record_of_a_gradual_pruner_is_that_of_all_its_steps() -> None:
    first, model = net(), net()
    pruner = gradual(model)
    made = fxprune.record(model)
    assert made.steps == len(steps_in(model).single) == 3
    assert made.removed == pruner.plan.removed
    assert made.error == max(one.error for one in steps_in(model).single) < 1e-12
    assert made.compared == min(one.compared for one in steps_in(model).single) > 0
    assert made.before == {name: tuple(tensor.shape) for name, tensor in first.state_dict().items()}
    assert made.after == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert made.bytes == tuple(fxprune.cost(each, batch(0)).bytes for each in (first, model))
    assert (made.cost[0].macs, made.cost[1].macs) == tuple(fxprune.cost(each, batch(0)).macs for each in (first, model))


def test_it_is_verified_against_the_first_model_and_says_that_it_was_trained() -> None:
    first, model = net(), net()
    gradual(model)
    with pytest.warns(fxprune.OtherWeightsWarning, match="trained, or changed otherwise"):
        assert fxprune.verify(first, model, batch(1)) < 1e-12


def test_training_between_the_steps_alone_is_seen_too() -> None:
    first, model = net(), net()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    pruner = fxprune.GradualPruner(model, batch(0), keep={"macs": 0.3}, steps=2, optimizer=optimizer)
    while not pruner.done:
        step(model, optimizer, pruner.number)
        pruner.step()
    with pytest.warns(fxprune.OtherWeightsWarning, match="trained, or changed otherwise"):
        assert fxprune.verify(first, model, batch(1)) < 1e-12


def test_steps_without_training_are_verified_with_the_weights_that_they_have() -> None:
    first, model = net(), net()
    gradual(model, train=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fxprune.verify(first, model, batch(1)) < 1e-12
    reference = fxprune.masked(first, fxprune.record(model).zeroed)
    assert torch.allclose(model(batch(2)), reference(batch(2)), atol=1e-12)
    with torch.no_grad():
        model.outer.bias[0] += 1.0  # one number of many, so it does not count as trained
    assert fxprune.verify(first, model, batch(1)) > 1e-3


@pytest.mark.parametrize("again", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_it_is_saved_and_loaded_into_the_first_architecture(again: Any, tmp_path: Path) -> None:
    model = net()
    gradual(model)
    fxprune.save(again(model), tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", into=Net().double())
    assert torch.equal(loaded(batch(1)), model(batch(1)))
    assert fxprune.record(loaded) == fxprune.record(model) == fxprune.record(again(model))


def chain() -> list[Net]:
    """A model, a smaller one made from it, a smaller one made from that, and that changed in place."""
    models = [net()]
    models.append(fxprune.transform(models[0], batch(0), ratio=0.25))
    models.append(fxprune.transform(models[1], batch(0), ratio=0.25))
    models.append(fxprune.transform_(copy.deepcopy(models[2]), batch(0), ratio=0.25))
    return models


def test_a_model_is_verified_against_every_model_that_it_was_made_from() -> None:
    models = chain()
    for number, small in enumerate(models):
        for earlier in models[:number]:
            for one in (small, pickle.loads(pickle.dumps(small))):
                if number < 3 or earlier is not models[2] or one is small:  # a pickle joins what was made in place
                    assert fxprune.verify(earlier, one, batch(1)) < 1e-12


def test_a_file_is_loaded_into_every_model_that_it_was_made_from(tmp_path: Path) -> None:
    models = chain()
    for number, small in enumerate(models[1:], 1):
        fxprune.save(small, tmp_path / "small.safetensors")
        for earlier in models[: min(number, 2)]:
            loaded = fxprune.load(tmp_path / "small.safetensors", into=copy.deepcopy(earlier))
            assert torch.equal(loaded(batch(1)), small(batch(1)))
            assert fxprune.verify(earlier, loaded, batch(1)) < 1e-12


def test_a_transform_is_relative_to_its_argument_and_a_change_in_place_to_what_that_was_made_from() -> None:
    models = chain()
    shapes = [{name: tuple(t.shape) for name, t in model.state_dict().items()} for model in models]
    assert [fxprune.record(model).steps for model in models[1:]] == [1, 1, 2]
    assert [fxprune.record(model).before for model in models[1:]] == [shapes[0], shapes[1], shapes[1]]


def test_another_model_is_refused_and_not_called_wrong() -> None:
    models = chain()
    wide = net()
    wide.stem, wide.norm = nn.Conv2d(3, 9, 3, padding=1, bias=False).double(), nn.BatchNorm2d(9).double()
    for large, small in ((models[1], models[1]), (models[2], models[1]), (wide, models[1])):
        with pytest.raises(fxprune.PlanError, match=r"(?s)not made from this model.*it has shape .*and had") as caught:
            fxprune.verify(large, small, batch(1))
        assert all((caught.value.at, caught.value.why, caught.value.do))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def test_a_reason_of_each_step_is_said_once() -> None:
    model, x = Normed().eval(), torch.randn(2, 8)
    for _ in range(3):
        fxprune.transform_(model, x, ratio=0.25)
    reasons = fxprune.record(model).reasons
    assert [reason[:19] for reason in reasons].count("a statistic changed") == 1
    assert len(set(reasons)) == len(reasons)


def test_steps_that_cannot_be_joined_are_named() -> None:
    x, first = torch.randn(2, 8), Normed().eval()
    model = copy.deepcopy(first)
    fxprune.transform_(model, x, ratio=0.25)
    fxprune.transform_(model, x, ratio=0.25, norms="preserve")
    made = fxprune.record(model)
    assert made.steps == 1
    assert "step 1 are not in this record: the two records are not one" in made.reasons[-1]
    with pytest.raises(fxprune.PlanError, match="the two records are not one") as caught:
        fxprune.verify(first, model, x)
    assert all((caught.value.at, caught.value.why, caught.value.do))


def test_a_branch_that_an_earlier_step_dropped_counts() -> None:
    x, first = torch.randn(5, 6).double(), Residual().double().eval()
    model = copy.deepcopy(first)
    fxprune.transform_(model, x, drop="blocks.0")
    fxprune.transform_(model, x, counts={"blocks.1.0": 6})
    assert fxprune.record(model).plan.dropped
    assert fxprune.verify(first, model, x) < 1e-12
    without = fxprune.transform(first, x, plan=fxprune.record(model).plan)
    assert torch.allclose(without(x), model(x), atol=1e-12)


class Counted(nn.Module):
    """Tied weights, a mask and a hidden buffer, and a parameter that forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.last, self.head = (nn.Linear(*n) for n in ((5, 8), (8, 8), (8, 8), (8, 3)))
        self.norm, self.last.weight = nn.BatchNorm1d(8), self.first.weight
        self.register_buffer("mask", torch.ones(8))
        self.register_buffer("hidden", torch.ones(100), persistent=False)
        self.spare = nn.Parameter(torch.ones(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.norm(self.first(self.stem(x))) * self.mask).relu())


@pytest.mark.parametrize(("make", "size"), [(Counted, (5,)), (Residual, (6,)), (Net, (3, 6, 6))])
def test_a_record_counts_parameters_as_torch_does(make: Any, size: tuple[int, ...]) -> None:
    model = make().eval()
    small = fxprune.transform(model, torch.randn(2, *size), ratio=0.5)
    counts = tuple(sum(parameter.numel() for parameter in each.parameters()) for each in (model, small))
    assert fxprune.record(small).params == counts
