"""Penalties against their formulas, written in the plainest way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.regularizers import L1, BatchNormL1, GroupLasso, GroupSparsity, GrowingRegularization
from fxprune.schedules import Linear
from tests.follow.nets import batch, net, step


def channels(model: nn.Module) -> list[list[torch.Tensor]]:
    """Group by group and channel by channel: all elements that are removed with the channel, as one vector."""
    found = []
    parameters = dict(model.named_parameters())
    for group in fxprune.analyze(model, batch(0), prefer="class").groups:
        elements: list[list[torch.Tensor]] = [[] for _ in range(group.size)]
        for member in group.members:
            if member.parameter in parameters:
                for slot, channel in zip(member.slots.tolist(), member.index.tolist(), strict=True):
                    elements[channel].append(parameters[member.parameter].select(member.dim, slot).flatten())
        found.append([torch.cat(parts) for parts in elements])
    return found


def group_lasso(model: nn.Module) -> torch.Tensor:
    return sum(math.sqrt(len(w)) * w.norm() for group in channels(model) for w in group)


def group_sparsity(model: nn.Module) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for group in channels(model):
        importance = [float(w.detach().square().sum()) for w in group]
        for w, own in zip(group, importance, strict=True):
            gamma = 2 ** (4 * (max(importance) - own) / (max(importance) - min(importance)))
            total = total + gamma * w.square().sum()
    return total


def growing(model: nn.Module, removed: Any) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, parameter in model.named_parameters():
        for place in (parameter != 0).nonzero().tolist():
            if any(place[dim] in indices for dim, indices in removed.get(name, {}).items()):
                total = total + parameter[tuple(place)] ** 2 / 2
    return total


def cases() -> dict[str, tuple[Callable[[nn.Module], Any], Callable[[nn.Module], torch.Tensor]]]:
    plan = fxprune.analyze(net(), batch(0)).plan(ratio=0.5)
    return {
        "L1": (
            lambda model: L1(model, 1.0),
            lambda model: sum(p.abs().sum() for name, p in model.named_parameters() if p.ndim > 1),
        ),
        "L1 with biases": (
            lambda model: L1(model, 1.0, biases=True),
            lambda model: sum(p.abs().sum() for p in model.parameters()),
        ),
        "BatchNormL1": (lambda model: BatchNormL1(model, 1.0), lambda model: model.norm.weight.abs().sum()),
        "GroupLasso": (lambda model: GroupLasso(model, batch(0), 1.0), group_lasso),
        "GroupSparsity": (lambda model: GroupSparsity(model, batch(0), 1.0), group_sparsity),
        "GrowingRegularization": (
            lambda model: GrowingRegularization(model, plan, delta=1.0, every=1, ceiling=1.0),
            lambda model: growing(model, plan.removed),
        ),
    }


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_a_penalty_and_its_gradients_are_those_of_the_formula(name: str) -> None:
    make, formula = CASES[name]
    model = net()
    penalty = make(model)
    penalty.step()
    expected = formula(model)
    assert penalty().item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    model(batch(0)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    penalty.add_gradients()
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        added = parameter.grad - old
        assert torch.allclose(added, torch.zeros_like(added) if gradient is None else gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_hook_of_the_optimizer_trains_as_a_term_of_the_loss_does(name: str) -> None:
    make, _ = CASES[name]
    term, hooked = net(), net()
    optimizers = [torch.optim.Adam(model.parameters(), 0.01) for model in (term, hooked)]
    penalties = [make(model) for model in (term, hooked)]
    for penalty in penalties:
        strength = penalty.strength
        penalty.strength = lambda number, strength=strength: strength(number) * Linear(0.0, 0.1, steps=3)(number)
    handle = penalties[1].attach(optimizers[1])
    for seed in range(4):
        optimizers[0].zero_grad()
        (term(batch(seed)).square().mean() + penalties[0]()).backward()
        optimizers[0].step()
        penalties[0].step()
        step(hooked, optimizers[1], seed)
    assert penalties[1].number == 4
    for a, b in zip(term.parameters(), hooked.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    handle.remove()
    step(hooked, optimizers[1], 4)
    assert penalties[1].number == 4


def test_a_channel_that_is_zero_has_no_gradient() -> None:
    model = net()
    with torch.no_grad():
        model.inner.weight[3], model.inner.bias[3] = 0, 0
        model.outer.weight[:, 3] = 0
    GroupLasso(model, batch(0), 1.0).add_gradients()
    assert bool((model.inner.weight.grad[3] == 0).all())
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)


def test_equal_channels_have_equal_weights_in_group_sparsity() -> None:
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    expected = sum(w.square().sum() for group in channels(model) for w in group)
    assert GroupSparsity(model, batch(0), 1.0)().item() == pytest.approx(expected.item())


def test_sparse_training_makes_channels_small() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    GroupLasso(model, batch(0), 0.5).attach(optimizer)
    before = min(w.norm().item() for w in channels(model)[0])
    for seed in range(30):
        step(model, optimizer, seed)
    assert min(w.norm().item() for w in channels(model)[0]) < before / 2


def test_growing_regularization_drives_what_goes_to_zero() -> None:
    model = net()
    plan = fxprune.analyze(model, batch(0)).plan(ratio=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    GrowingRegularization(model, plan, delta=0.5, every=2, ceiling=4.0).attach(optimizer)
    for seed in range(40):
        step(model, optimizer, seed)
    small = fxprune.transform(model, batch(0), plan=plan)
    assert (small(batch(1)) - model(batch(1))).abs().max().item() < 1e-3


def test_a_penalty_follows_a_model_that_gets_smaller() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    penalty = GroupLasso(model, batch(0), 0.1)
    penalty.attach(optimizer)
    fxprune.transform_(model, batch(0), ratio=0.5, optimizer=optimizer)
    step(model, optimizer, 0)
    assert penalty.penalty().item() == pytest.approx(group_lasso(model).item())


def test_no_strength_adds_nothing() -> None:
    model = net()
    L1(model, 0.0).add_gradients()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: L1(model, "strong"), "strength must be a number"),
        (lambda model: L1(model, -1.0)(), "finite number of at least 0"),
        (lambda model: L1(model, lambda number: math.nan)(), r"finite number.*\n  at   L1, step 0"),
        (lambda model: L1([], 1.0), "a penalty needs a model"),
        (lambda model: BatchNormL1(model.head, 1.0), "no batch norm"),
        (lambda model: GroupLasso(model, torch.ones(2), 1.0), "the model's forward raises"),
        (lambda model: GrowingRegularization(model, fxprune.Plan({}), delta=0.1), "removes nothing of this model"),
        (lambda model: GrowingRegularization(model, fxprune.Plan({}), every=0), "needs positive numbers"),
        (lambda model: GrowingRegularization(model, fxprune.Plan({}), every="a"), "needs positive numbers"),
        (lambda model: GrowingRegularization(model, None), "a plan is needed"),
        (lambda model: GroupLasso(model, batch(0), 1.0, bogus=1), "has no option bogus"),
        (lambda model: GroupSparsity(model, batch(0), 1.0, alpha="x"), "alpha must be a finite number"),
        (
            lambda model: GroupSparsity(model, batch(0), 1.0, alpha=-1),
            r"alpha must be.*\n  at .*alpha=-1.*\n  why .*\n  do ",
        ),
        (lambda model: L1(model, -1.0), r"of at least 0\n  at   L1, step 0\n  why  it is -1.0\n  do "),
        (lambda model: GroupLasso(model.head, torch.ones(2, model.head.in_features).to(batch(0)), 1.0), "no channels"),
        (lambda model: GrowingRegularization(model, fxprune.Plan({}), delta=math.inf), "needs positive numbers"),
        (lambda model: GrowingRegularization(model, fxprune.Plan({}), every=True), "needs positive numbers"),
        (lambda model: L1(model, 1.0, biases="no"), "biases must be True or False"),
        (lambda model: L1(model, lambda number: True)(), "finite number of at least 0"),
        (
            lambda model: L1(model, 1.0).add_gradients(math.nan),
            r"scale must be a finite number or a tensor\n  at   .*scale=nan",
        ),
        (lambda model: L1(model, 1.0).attach(torch.optim.SGD(net().parameters(), 0.1)), "SGD trains nothing that L1"),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(fxprune.FxpruneError, match=message):
        make(net())


@pytest.mark.parametrize("kind", [GroupLasso, GroupSparsity, GrowingRegularization, BatchNormL1, L1])
def test_a_missing_argument_is_told_in_the_name_of_the_class(kind: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{kind.__name__}\(\) is missing the argument"):
        kind(net())


def test_a_plan_of_another_model_is_refused() -> None:
    model = net()
    small = fxprune.transform(model, batch(0), ratio=0.5)
    plan = fxprune.analyze(model, batch(0)).plan(ratio=0.5)
    with pytest.raises(fxprune.PlanError, match="for another model"):
        GrowingRegularization(small, plan)


def test_a_step_with_a_closure_gets_the_penalty() -> None:
    ways = []
    for closure in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        penalty = L1(model, Linear(0.0, 0.1, steps=3))
        penalty.attach(optimizer)
        for seed in range(4):

            def compute(model: nn.Module = model, optimizer: Any = optimizer, seed: int = seed) -> torch.Tensor:
                optimizer.zero_grad()
                loss = model(batch(seed)).square().mean()
                loss.backward()
                return loss

            if closure:
                assert float(optimizer.step(compute).detach()) >= 0
            else:
                compute()
                optimizer.step()
        assert penalty.number == 4
        ways.append(list(model.parameters()))
    for a, b in zip(*ways, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_does_not_scale_the_penalty(fused: bool) -> None:
    ways = []
    for scaled in (False, True):
        model = net().float()
        optimizer = torch.optim.SGD(model.parameters(), 0.01, fused=fused)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        L1(model, 0.1).attach(optimizer)
        for seed in range(3):
            optimizer.zero_grad()
            scaler.scale(model(batch(seed).float()).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        ways.append(list(model.parameters()))
    for a, b in zip(*ways, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-5)


def test_a_growing_penalty_is_zero_when_its_channels_are_gone() -> None:
    model = net()
    plan = fxprune.analyze(model, batch(0)).plan(ratio=0.5)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    penalty = GrowingRegularization(model, plan, delta=1.0, every=1)
    penalty.attach(optimizer)
    step(model, optimizer, 0)
    assert penalty().item() > 0
    fxprune.transform_(model, batch(0), plan=plan, optimizer=optimizer)
    step(model, optimizer, 1)
    assert penalty().item() == 0
    fxprune.transform_(model, batch(0), ratio=0.5, optimizer=optimizer)
    assert penalty().item() == 0


def test_a_growing_penalty_that_does_not_follow_says_that_the_model_is_another_one() -> None:
    model = net()
    penalty = GrowingRegularization(model, fxprune.analyze(model, batch(0)).plan(ratio=0.5), delta=1.0, every=1)
    fxprune.transform_(model, batch(0), ratio=0.25)
    with pytest.raises(fxprune.PlanError, match="for another model"):
        penalty()


def test_a_penalty_is_attached_to_an_optimizer_alone() -> None:
    with pytest.raises(fxprune.PlanError, match="attached to an optimizer"):
        L1(net(), 0.1).attach(net())


@pytest.mark.parametrize("closure", [False, True])
def test_of_two_optimizers_each_adds_to_its_own_parameters(closure: bool) -> None:
    models = [net(), net()]
    models[1].load_state_dict(models[0].state_dict())
    halves = list(models[0].parameters())
    two = [torch.optim.SGD(half, 0.01, momentum=0.9) for half in (halves[:2], halves[2:])]
    one = torch.optim.SGD(models[1].parameters(), 0.01, momentum=0.9)
    penalties = [L1(model, Linear(0.1, 0.2, 4), biases=True) for model in models]
    handles = [penalties[0].attach(optimizer) for optimizer in two]
    penalties[1].attach(one)
    for _ in range(3):
        for model, optimizers in zip(models, (two, [one]), strict=True):
            model.zero_grad()
            model(batch(0)).square().mean().backward()
            for optimizer in optimizers:
                optimizer.step((lambda: 0.0) if closure else None)
    assert penalties[0].number == penalties[1].number == 3
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    handles[1].remove()
    two[0].step()
    assert penalties[0].number == 4


def test_a_penalty_goes_on_from_its_state() -> None:
    first = L1(net(), Linear(0.0, 1.0, steps=4))
    for _ in range(3):
        first.step()
    second = L1(net(), Linear(0.0, 1.0, steps=4))
    second.load_state_dict(first.state_dict())
    assert second().item() == first().item() > 0
    for wrong in (None, {}, {"number": -1}, {"number": 1.5}, {"number": True}, {"number": 1, "more": 2}):
        with pytest.raises(fxprune.FileError, match="the state of L1"):
            second.load_state_dict(wrong)
    assert second.number == 3
