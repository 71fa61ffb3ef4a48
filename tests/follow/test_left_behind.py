"""Optimizers that were not told that the model got smaller."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch

import fxprune
from tests.follow.nets import batch, net, pruned, step


def _step_twice(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.step()


def test_a_step_that_trains_nothing_is_warned_of_once() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer, 0)
    small = pruned(model)
    optimizer.zero_grad()
    small(batch(1)).square().mean().backward()
    with pytest.warns(fxprune.OptimizerLeftBehindWarning, match=r"Adam trains nothing.*fxprune\.follow") as caught:
        _step_twice(optimizer)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_gradients_that_were_set_to_zero_train_nothing_either() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step(model, optimizer, 0)
    small = pruned(model)
    optimizer.zero_grad(set_to_none=False)
    small(batch(1)).square().mean().backward()
    with pytest.warns(fxprune.OptimizerLeftBehindWarning):
        optimizer.step()


def test_nothing_is_said_while_the_original_is_trained_further() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    small = pruned(model)
    other = torch.optim.Adam(small.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer, 0)
        step(small, other, 1)
        model(batch(2)).square().mean().backward()
        optimizer.step()
        del small, other
        gc.collect()
        optimizer.zero_grad()
        optimizer.step()


def test_an_optimizer_that_follows_is_not_watched() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    small = pruned(model, optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(small, optimizer, 0)
    assert not optimizer._optimizer_step_pre_hooks


def test_one_that_follows_later_is_not_warned_of() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    small = pruned(model)
    fxprune.follow(optimizer, model, small)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(small, optimizer, 0)
        optimizer.zero_grad()
        optimizer.step()


def test_the_collector_is_asked_only_if_anything_else_holds_a_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(gc, "get_objects", lambda: asked.append(1) or [])
    model = net()
    pruned(model)
    assert asked == []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruned(model)
    assert asked == [1]
    assert optimizer.param_groups[0]["params"][0] is model.stem.weight


def test_a_wrapper_without_hooks_is_left_alone() -> None:
    class Wrapper(torch.optim.Optimizer):
        """An optimizer that does not call the constructor of its base class, such as the one of accelerate."""

        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.inner = inner

        @property
        def param_groups(self) -> list[dict[str, object]]:
            return self.inner.param_groups

    model = net()
    wrapper = Wrapper(torch.optim.SGD(model.parameters(), 0.1))
    small = pruned(model)
    small(batch(0)).square().mean().backward()
    with pytest.warns(fxprune.OptimizerLeftBehindWarning, match="SGD trains nothing"):
        wrapper.inner.step()


def _train_small(small: torch.nn.Module, seed: int) -> None:
    small.zero_grad()
    small(batch(seed)).square().mean().backward()


def test_gradients_from_before_the_transform_train_nothing() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer, 0)
    small = pruned(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(1, 4):
            _train_small(small, seed)
            optimizer.step()
    assert [each.category for each in caught] == [fxprune.OptimizerLeftBehindWarning]
    assert "no new gradients" in str(caught[0].message)


def test_one_step_with_gradients_from_before_the_transform_is_a_step_of_the_original() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(batch(0)).square().mean().backward()
    small = pruned(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(1, 4):
            _train_small(small, seed)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            model(batch(seed)).square().mean().backward()


def test_a_step_with_a_closure_makes_its_gradients_itself() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    small = pruned(model)

    def closure_of(trained: torch.nn.Module) -> torch.Tensor:
        optimizer.zero_grad()
        loss = trained(batch(1)).square().mean()
        loss.backward()
        return loss

    _train_small(small, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(lambda: closure_of(model))
        optimizer.zero_grad()
        optimizer.step(closure=lambda: closure_of(model))
    with pytest.warns(fxprune.OptimizerLeftBehindWarning) as caught:
        optimizer.step(lambda: closure_of(small))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("gradual", [False, True])
def test_in_place_the_first_step_is_warned_of(gradual: bool) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step(model, optimizer, 0)
    if gradual:
        fxprune.GradualPruner(model, batch(0), keep={"params": 0.5}, steps=2).step()
    else:
        fxprune.transform_(model, batch(0), ratio=0.5)
    _train_small(model, 1)
    with pytest.warns(fxprune.OptimizerLeftBehindWarning, match="before it was pruned in place") as caught:
        _step_twice(optimizer)
    assert len(caught) == 1


def test_in_place_an_optimizer_that_got_the_new_parameters_is_not_warned_of() -> None:
    model, other = net(), net()
    optimizer, followed = torch.optim.SGD(model.parameters(), 0.1), torch.optim.SGD(other.parameters(), 0.1)
    step(other, followed, 0)
    fxprune.transform_(model, batch(0), ratio=0.5)
    fxprune.transform_(other, batch(0), ratio=0.5, optimizer=followed)
    optimizer.add_param_group({"params": list(model.parameters())})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(model, optimizer, 1)
        step(other, followed, 1)


def test_in_place_a_parameter_that_another_model_trains_is_not_warned_of() -> None:
    model, other = net(), net()
    other.head.weight = model.head.weight
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    fxprune.transform_(model, batch(0), ratio=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(other, optimizer, 1)
