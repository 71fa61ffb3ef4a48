"""Penalties of sparse training go on with the small model: found by their optimizer, or named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.regularizers import L1, BatchNormL1, GroupLasso, GroupSparsity, GrowingRegularization, Regularizer
from fxprune.schedules import Linear
from tests.follow.nets import Residual, batch, net, step

STRENGTH = Linear(0.0, 0.1, steps=8)


def grows(model: nn.Module) -> Regularizer:
    plan = fxprune.analyze(model, batch(0)).plan(counts={"stem": 2, "inner": 3})
    return GrowingRegularization(model, plan, delta=0.1, every=1)


MAKES: dict[str, Callable[[nn.Module], Regularizer]] = {
    "L1": lambda model: L1(model, STRENGTH, biases=True),
    "BatchNormL1": lambda model: BatchNormL1(model, STRENGTH),
    "GroupLasso": lambda model: GroupLasso(model, batch(0), STRENGTH),
    "GroupSparsity": lambda model: GroupSparsity(model, batch(0), STRENGTH),
    "GrowingRegularization": grows,
}


def fresh(name: str, small: nn.Module, model: nn.Module) -> torch.Tensor:
    """The penalty of the small model without the strength, made anew."""
    if name != "GrowingRegularization":
        return MAKES[name](small).penalty()
    plan, removed, total = grows(model).plan, fxprune.record(small).removed, 0.0
    for key, parameter in small.named_parameters():
        gone = torch.zeros_like(model.get_parameter(key), dtype=torch.bool)
        for dim, indices in plan.removed.get(key, {}).items():
            gone.index_fill_(dim, torch.tensor(indices), True)
        for dim, indices in removed.get(key, {}).items():
            gone = gone.index_select(dim, torch.tensor([i for i in range(gone.shape[dim]) if i not in indices]))
        total += (parameter[gone] ** 2).sum() / 2
    return torch.as_tensor(total)


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("way", ["attached", "term", "named", "in place"])
def test_a_penalty_goes_on_with_the_small_model(name: str, way: str) -> None:
    model, original = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    penalty = MAKES[name](model)
    if way != "term":
        penalty.attach(optimizer)
    for seed in range(3):
        step(model, optimizer, seed)
    original.load_state_dict(model.state_dict())
    number = penalty.number
    if way == "named":
        small = fxprune.transform(model, batch(0), ratio=0.25)
        result = fxprune.follow([optimizer, penalty], model, small)
        assert [each.kind for each in result] == ["SGD", name]
        assert set(result[1].moved) <= set(dict(small.named_parameters()))
    else:
        function = fxprune.transform_ if way == "in place" else fxprune.transform
        small = function(model, batch(0), ratio=0.25, optimizer=optimizer)
        assert f"{name}: it is on the small model" in fxprune.record(small).reasons
    assert penalty.model is small
    assert penalty.number == number == (0 if way == "term" else 3)
    assert penalty.penalty().item() == pytest.approx(fresh(name, small, original).item(), rel=1e-12)
    assert penalty.penalty().item() > 0
    before = [parameter.detach().clone() for parameter in small.parameters()]
    penalty.number = 5
    penalty.add_gradients()
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


def test_the_next_steps_with_a_penalty_are_those_of_the_masked_original() -> None:
    from tests.follow.nets import kept, zero_removed

    model = net()
    masked = net()
    pairs = []
    for each in (model, masked):
        optimizer = torch.optim.Adam(each.parameters(), 0.01)
        L1(each, 0.1, biases=True).attach(optimizer)
        step(each, optimizer, 0)
        pairs.append(optimizer)
    small = fxprune.transform(model, batch(0), ratio=0.5, optimizer=pairs[0])
    removed = fxprune.record(small).removed
    zero_removed(masked, removed)
    for seed in range(1, 4):
        step(small, pairs[0], seed)
        step(masked, pairs[1], seed)
        zero_removed(masked, removed)
    for name, parameter in small.named_parameters():
        assert (parameter - kept(masked.get_parameter(name), removed.get(name, {}))).abs().max() < 1e-12


def test_a_penalty_of_a_part_goes_on_with_that_part() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    model = Around()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    penalty = L1(model.net, 0.1)
    small = fxprune.transform(model, batch(0), ratio=0.5, optimizer=optimizer)
    assert penalty.model is small.net


def test_a_penalty_of_another_optimizer_or_of_none_that_follows_stays() -> None:
    model = net()
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for _ in range(2)]
    penalties = [L1(model, 0.1), L1(net(), 0.1)]
    penalties[0].attach(optimizers[1])
    owners = [penalty.model for penalty in penalties]
    small = fxprune.transform(model, batch(0), ratio=0.5, optimizer=optimizers[0])
    fxprune.transform(model, batch(0), ratio=0.5)
    assert [penalty.model for penalty in penalties] == owners
    assert not any("it is on the small model" in reason for reason in fxprune.record(small).reasons)


def test_a_penalty_whose_handle_was_removed_is_a_term_of_the_loss_again() -> None:
    model = net()
    optimizers = [torch.optim.SGD(model.parameters(), 0.01) for _ in range(2)]
    penalty = L1(model, 0.1)
    penalty.attach(optimizers[1]).remove()
    small = fxprune.transform(model, batch(0), ratio=0.5, optimizer=optimizers[0])
    assert penalty.model is small


def test_a_penalty_that_cannot_follow_is_warned_of_or_refused() -> None:
    model, x = Residual(), torch.randn(3, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    penalty = L1(model.blocks[0], 0.1)
    penalty.attach(optimizer)
    text = "L1 cannot follow, and is without effect on the small model, because"
    with pytest.warns(UserWarning, match=text) as caught:
        small = fxprune.transform(model, x, drop="blocks.0", optimizer=optimizer)
    assert [warning.filename for warning in caught] == [__file__]
    assert penalty.model is model.blocks[0]
    for target in (penalty, L1(net(), 0.1)):
        with pytest.raises(fxprune.InputError, match="cannot follow") as error:
            fxprune.follow(target, model, small)
        assert all((error.value.at, error.value.why, error.value.do))
    with pytest.raises(fxprune.InputError, match="neither the model nor a module in it"):
        fxprune.transform(model, x, ratio=0.5, optimizer=[L1(net(), 0.1)])


@pytest.mark.parametrize("name", ["L1", "GroupLasso"])
@pytest.mark.parametrize("make", [torch.optim.SGD, lambda p, lr: torch.optim.Adam(p, lr, fused=True)])
def test_a_penalty_that_was_forgotten_says_so_when_the_small_model_is_trained(name: str, make: Any) -> None:
    model = net()
    penalty = MAKES[name](model)
    small = fxprune.transform(model, batch(0), ratio=0.25)
    optimizer = make(small.parameters(), 0.01)
    for seed in range(3):
        optimizer.zero_grad()
        if seed == 1:
            with pytest.warns(UserWarning, match=f"{name} is without effect.*fxprune.follow") as caught:
                loss = small(batch(seed)).square().mean() + penalty()
            assert [warning.filename for warning in caught] == [__file__]
        else:
            loss = small(batch(seed)).square().mean() + penalty()
        loss.backward()
        optimizer.step()


def test_a_penalty_of_a_model_that_is_trained_on_says_nothing() -> None:
    model = net()
    penalty = L1(model, 0.1)
    both = model, fxprune.transform(model, batch(0), ratio=0.25)
    optimizers = [torch.optim.SGD(each.parameters(), 0.01) for each in both]
    for seed in range(3):
        for each, optimizer in zip(both, optimizers, strict=True):
            optimizer.zero_grad()
            (each(batch(seed)).square().mean() + penalty()).backward()
            optimizer.step()
    in_place: Any = net()
    penalty = L1(in_place, 0.1)
    fxprune.transform_(in_place, batch(0), ratio=0.25)
    optimizer = torch.optim.SGD(in_place.parameters(), 0.01)
    for seed in range(3):
        (in_place(batch(seed)).square().mean() + penalty()).backward()
        optimizer.step()


def test_a_failed_transform_leaves_the_penalty() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    penalty = GroupLasso(model, batch(0), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(fxprune.FxpruneError):
            fxprune.transform(model, batch(0), ratio=0.5, optimizer=[optimizer, torch.optim.LBFGS(model.parameters())])
    assert penalty.model is model


def test_a_growing_penalty_goes_on_with_a_gradual_pruner() -> None:
    model: Any = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    penalty = grows(model)
    penalty.attach(optimizer)
    pruner = fxprune.GradualPruner(model, batch(0), keep={"macs": 0.3}, steps=4, optimizer=optimizer)
    for seed in range(8):
        step(model, optimizer, seed)
        if seed % 2:
            pruner.step()
    assert penalty.model is model
    assert penalty.number == 8
    assert penalty().item() >= 0


def test_a_penalty_says_how_strong_it_is() -> None:
    penalty = L1(net(), STRENGTH)
    penalty.step()
    assert repr(penalty) == "L1 of Net: strength 0.0125 at step 1"
