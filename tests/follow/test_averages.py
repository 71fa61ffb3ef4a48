"""Averaged models that follow."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fxprune
from tests.follow.nets import batch, differences, kept, net, pruned, step, zero_removed


@pytest.mark.parametrize("use_buffers", [False, True])
def test_an_average_goes_on_as_that_of_the_masked_original(use_buffers: bool) -> None:
    model = net().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    for seed in range(3):
        step(model, optimizer, seed)
        average.update_parameters(model)
    masked, masked_average, masked_optimizer = copy.deepcopy((model, average, optimizer))
    small = pruned(model, optimizer=optimizer, ema=average)
    removed = fxprune.record(small).removed
    zero_removed(masked, removed)
    zero_removed(masked_average.module, removed)
    assert max(differences(masked_average.module, average.module, removed).values()) == 0
    for seed in range(3, 6):
        step(small, optimizer, seed)
        average.update_parameters(small)
        step(masked, masked_optimizer, seed)
        zero_removed(masked, removed)
        masked_average.update_parameters(masked)
    assert max(differences(masked, small, removed).values()) < 1e-12
    assert max(differences(masked_average.module, average.module, removed).values()) < 1e-12
    assert int(average.n_averaged) == int(masked_average.n_averaged) == 6
    for name, buffer in masked_average.module.named_buffers():
        made = average.module.get_buffer(name)
        assert torch.allclose(made, kept(buffer, removed.get(name, {})), rtol=0, atol=1e-12)
    assert average.module.training
    assert not torch.equal(average.module.head.weight, small.head.weight)
    assert fxprune.record(average.module).removed == removed


def test_the_average_shares_nothing_with_the_small_model() -> None:
    model = net()
    average = AveragedModel(model)
    small = pruned(model, ema=average)
    theirs = {p.data_ptr() for p in average.module.parameters()}
    assert theirs.isdisjoint(p.data_ptr() for p in small.parameters())
    assert type(average.module) is type(model)
    average.update_parameters(small)
    assert torch.equal(average(batch(1)), small(batch(1)))


def test_modes_of_the_average_stay() -> None:
    model = net().train()
    average = AveragedModel(model).eval()
    pruned(model, ema=average)
    assert not any(module.training for module in average.modules())


def test_an_average_of_another_model_is_refused() -> None:
    model = net()
    other = AveragedModel(nn.Sequential(nn.Linear(3, 3)))
    before = other.module
    with pytest.raises(fxprune.InputError, match=r"holds no copy of the model\n  at   .*\n  why .*not exist"):
        pruned(model, ema=other)
    assert other.module is before


def test_an_average_is_refused_where_constants_were_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 2, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight[:3] = 0
    average = AveragedModel(model)
    x = torch.randn(5, 4, dtype=torch.float64)
    with pytest.raises(fxprune.InputError, match=r"folds constants.*\n  do   average.module = fxprune.transform"):
        fxprune.transform(model, x, masks="zeros", ema=average)
    small = fxprune.transform(model, x, masks="zeros")
    average.module = fxprune.transform(average.module, x, plan=fxprune.record(small).plan)
    average.update_parameters(small)


def test_the_average_of_a_repaired_model_says_that_it_is_not() -> None:
    model = net()
    average = AveragedModel(model)
    small = pruned(model, ema=average, repair=[batch(seed) for seed in range(12)])
    assert any("not repaired" in reason for reason in fxprune.record(small).reasons)


def test_an_average_keeps_its_type_and_that_it_is_not_trained() -> None:
    model = net()
    average = AveragedModel(model).to(torch.float32).requires_grad_(False)
    pruned(model, ema=average)
    assert {p.dtype for p in average.module.parameters()} == {torch.float32}
    assert {b.dtype for b in average.module.buffers()} == {torch.float32, torch.int64}
    assert not any(parameter.requires_grad for parameter in average.parameters())
    average(batch(0).float())


@pytest.mark.parametrize("prune", [fxprune.transform, fxprune.transform_])
def test_the_modules_of_an_average_stay_the_same_objects(prune: Any) -> None:
    model = net()
    average = AveragedModel(model)
    modules = dict(average.named_modules())
    prune(model, batch(0), ratio=0.5, prefer="class", ema=average)
    assert dict(average.named_modules()) == modules
    assert average.module.stem.out_channels == 4


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([net(), nn.Linear(5, 2).double()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts[1](self.parts[0](x))


@pytest.mark.parametrize("in_place", [True, False])
def test_the_average_of_a_larger_model_follows_a_part_of_it(in_place: bool) -> None:
    task = Task()
    average = AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(1.5)
    masked = copy.deepcopy(average)
    if in_place:
        small = fxprune.transform_(task.parts[0], batch(0), ratio=0.5, ema=average)
    else:
        small = task.parts[0] = fxprune.transform(task.parts[0], batch(0), ratio=0.5, path="fx", ema=average)
    removed = fxprune.record(small).removed
    zero_removed(masked.module.parts[0], removed)
    assert torch.allclose(average.eval()(batch(1)), masked.eval()(batch(1)), rtol=0, atol=1e-12)
    average.n_averaged += 1
    average.update_parameters(task)


def test_an_average_with_several_copies_of_the_model_is_refused() -> None:
    model = net()
    twins = AveragedModel(nn.ModuleDict({"one": model, "two": copy.deepcopy(model)}))
    with pytest.raises(fxprune.InputError, match=r'several copies of the model\n  at   "one", "two"\n  why .*\n  do '):
        pruned(model, ema=twins)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (set, r"set cannot follow\n  at   {SGD.*\n  why  several targets are given as a list\n  do   pass \[first"),
        (lambda optimizers: (each for each in optimizers), r"generator cannot follow\n .*\n  why  several targets"),
        (lambda optimizers: dict(enumerate(optimizers)), r"dict cannot follow\n .*\n  why  several targets"),
        (lambda optimizers: "sgd", r"str cannot follow\n  at   'sgd'\n  why  it is no optimizer"),
        (lambda optimizers: torch.optim.SGD, r"type cannot follow\n .*\n  why  SGD is a class"),
        (lambda optimizers: [None, *optimizers], r"NoneType cannot follow\n  at   None"),
        (
            lambda optimizers: net(),
            r"Net cannot follow\n  at   Net\(\)\n  why  it is no optimizer, and has no attribute",
        ),
        (lambda optimizers: torch.optim.LBFGS(optimizers[0].param_groups[0]["params"]), r"LBFGS cannot follow"),
        (lambda optimizers: torch.optim.SGD(net().parameters()), r"SGD holds no parameter of the model"),
    ],
)
@pytest.mark.parametrize("prune", [fxprune.transform, fxprune.transform_])
def test_what_cannot_follow_is_refused_before_anything_is_done(
    target: Any, text: str, prune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    optimizers = [torch.optim.SGD(model.parameters(), 0.1)]
    monkeypatch.setattr(model, "forward", pytest.fail)
    with pytest.raises(fxprune.InputError, match=text):
        prune(model, batch(0), ratio=0.5, optimizer=target(optimizers))
