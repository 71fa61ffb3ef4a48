"""Optimizers that follow: the next steps are those of the masked original."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.follow.nets import batch, differences, kept, net, pruned, step, zero_removed

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "sgd with momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
    "sgd with dampening": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.3, maximize=True),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adam, foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True, weight_decay=0.01),
    "adam, fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.01),
    "radam": lambda p: torch.optim.RAdam(p, 0.01),
    "adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
}


def same_next_steps(models: tuple[Any, Any, Any], optimizers: tuple[Any, Any], removed: Any) -> None:
    """Train the masked and the small model three steps further, and compare them.

    models: the original, the masked and the small one. optimizers: of the last two.
    """
    model, masked, small = models
    for seed in range(3, 6):
        step(small, optimizers[1], seed)
        step(masked, optimizers[0], seed)
        zero_removed(masked, removed)
    assert max(differences(masked, small, removed).values()) < 1e-12
    assert max(differences(model, small, removed).values()) > 1e-4  # the small model was trained


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_steps_are_those_of_the_masked_original(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    for seed in range(3):
        step(model, optimizer, seed)
    masked, masked_optimizer = copy.deepcopy((model, optimizer))
    small = pruned(model)
    removed = fxprune.record(small).removed
    zero_removed(masked, removed)
    result = fxprune.follow(optimizer, model, small)
    assert (len(result.moved), result.dropped, result.added, result.notes) == (9, (), (), ())
    same_next_steps((model, masked, small), (masked_optimizer, optimizer), removed)


def test_the_object_its_groups_and_its_scheduler_stay() -> None:
    model = net()
    groups = [
        {"params": [model.stem.weight, model.inner.weight], "lr": 0.1, "weight_decay": 0.5, "mine": "first"},
        {"params": [model.head.weight, model.head.bias], "lr": 0.01},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    step(model, optimizer, 0)
    small = pruned(model, optimizer=optimizer)
    made = dict(small.named_parameters())
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == [
        [id(made["stem.weight"]), id(made["inner.weight"])],
        [id(made["head.weight"]), id(made["head.bias"])],
    ]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]
    assert optimizer.param_groups[0]["mine"] == "first"
    assert len(optimizer.state) == 4
    step(small, optimizer, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.005]
    assert calls == [1, 1]


def test_gradients_follow() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(batch(0)).square().mean().backward()
    small = pruned(model, optimizer=optimizer)
    removed = fxprune.record(small).removed
    for name, parameter in model.named_parameters():
        assert torch.equal(small.get_parameter(name).grad, kept(parameter.grad, removed.get(name, {})))


def test_a_parameter_that_vanishes_leaves_its_group_with_its_state() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.unused = net(), nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    model = Unused().eval()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model.unused.grad = torch.ones_like(model.unused)
    step(model, optimizer, 0)
    optimizer.state[model.unused]["step"] = torch.tensor(1.0)
    small = pruned(model, prefer="graph")
    result = fxprune.follow(optimizer, model, small)
    assert result.dropped == ("unused",)
    assert len(optimizer.param_groups[0]["params"]) == 9
    assert model.unused not in optimizer.state
    step(small, optimizer, 1)


def test_a_bias_that_takes_up_constants_joins_the_group_of_its_layer() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        model[0].weight[:3] = 0
    x = torch.randn(5, 4, dtype=torch.float64)
    optimizer = torch.optim.Adam([{"params": model[:2].parameters()}, {"params": model[2:].parameters(), "lr": 0.5}])
    model(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model[0].weight[:3] = 0
    small = fxprune.transform(model, x, masks="zeros")
    result = fxprune.follow(optimizer, model, small)
    assert result.added == ("2.bias",)
    assert any(p is small.get_parameter("2.bias") for p in optimizer.param_groups[1]["params"])


class Scaled(nn.Module):
    """Attention whose scale follows from the head width, so the plan multiplies a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 2, 8
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.out = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, self.heads, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = (q @ k.transpose(-2, -1) * self.width**-0.5).softmax(-1) @ v
        return self.out(h.transpose(1, 2).reshape(b, n, -1))


def test_state_of_a_parameter_with_a_factor_has_the_inverse_factor() -> None:
    torch.manual_seed(0)
    model = Scaled().double().eval()
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    small = fxprune.transform(model, x, ratio=0.5, optimizer=optimizer)
    record = fxprune.record(small)
    name = record.plan.factors[0].tensor
    assert any("Adam: " in reason and name in reason and "inverse factor" in reason for reason in record.reasons)
    factor, slots = record.plan.factors[0].factor, record.removed.get(name, {})
    state = optimizer.state[small.get_parameter(name)]
    fresh = torch.optim.Adam(model.parameters())
    fresh.step()  # the same gradients again: exp_avg is 0.1 g, exp_avg_sq 0.001 g^2
    expected = fresh.state[model.get_parameter(name)]
    assert torch.allclose(state["exp_avg"], kept(expected["exp_avg"], slots) / factor, rtol=1e-12, atol=0)
    assert torch.allclose(state["exp_avg_sq"], kept(expected["exp_avg_sq"], slots) / factor**2, rtol=1e-12, atol=0)
    assert torch.allclose(small.get_parameter(name).grad, kept(model.get_parameter(name).grad, slots) / factor)


def test_adafactor_keeps_rows_and_columns_and_says_what_they_count() -> None:
    model = net()
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer, 0)
    before = copy.deepcopy(optimizer.state[model.head.weight])
    small = pruned(model, optimizer=optimizer)
    removed = fxprune.record(small).removed["head.weight"]
    state = optimizer.state[small.head.weight]
    assert torch.equal(state["row_var"], before["row_var"])
    assert torch.equal(state["col_var"], kept(before["col_var"], removed))
    assert any(
        reason.startswith("Adafactor: Adafactor holds means over rows") for reason in fxprune.record(small).reasons
    )
    step(small, optimizer, 1)


def test_an_optimizer_without_state_follows() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    small = pruned(model, optimizer=optimizer)
    assert len(optimizer.state) == 0
    step(small, optimizer, 0)
    assert len(optimizer.state) == 9


def test_several_follow_together_or_not_at_all() -> None:
    model = net()
    first, second = torch.optim.SGD(model.parameters(), 0.1), torch.optim.LBFGS(model.parameters())
    for optimizer in (first, second):
        optimizer.step(lambda: model(batch(0)).square().mean().backward() or torch.tensor(1.0, dtype=torch.float64))
    small = pruned(model)
    with pytest.raises(
        fxprune.InputError, match=r"state of LBFGS cannot follow\n  at .*\n  why .*\n  do .*new optimizer"
    ):
        fxprune.follow([first, second], model, small)
    assert first.param_groups[0]["params"][0] is model.stem.weight
    third = torch.optim.SGD(model.parameters(), 0.1)
    assert [each.kind for each in fxprune.follow([first, third], model, small)] == ["SGD", "SGD"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda model: torch.optim.SGD(net().parameters(), 0.1), "SGD holds no parameter of the model"),
        (lambda model: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters()), 1), "pass its optimizer"),
        (lambda model: "sgd", "str cannot follow"),
        (lambda model: None, "NoneType cannot follow"),
        (lambda model: nn.Linear(2, 2), "no attribute `module`"),
    ],
)
def test_other_targets_are_refused(target: Any, message: str) -> None:
    model = net()
    small = pruned(model)
    with pytest.raises(fxprune.InputError, match=message):
        fxprune.follow(target(model), model, small)


def test_another_model_is_refused() -> None:
    model = net()
    small = pruned(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for other, again in ((small, small), (nn.Linear(3, 3), small), (nn.Sequential(net()), small)):
        with pytest.raises(fxprune.PlanError, match="was not made from this model"):
            fxprune.follow(optimizer, other, again)
    with pytest.raises(fxprune.FxpruneError, match="no record"):
        fxprune.follow(optimizer, model, model)
    fxprune.follow(optimizer, model, small)
    with pytest.raises(fxprune.InputError, match="holds the parameters of the small model already"):
        fxprune.follow(optimizer, model, small)


def test_a_program_has_nothing_that_could_follow() -> None:
    model = net()
    program = torch.export.export(model, (batch(0),))
    with pytest.raises(fxprune.PlanError, match="nothing can follow a program"):
        fxprune.transform(program, batch(0), ratio=0.5, optimizer=torch.optim.SGD(model.parameters()))


def test_names_of_parameters_follow() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        model[0].weight[:3] = 0
    optimizer = torch.optim.Adam([(f"mine.{name}", parameter) for name, parameter in model.named_parameters()])
    fxprune.transform(model, torch.randn(5, 4, dtype=torch.float64), masks="zeros", optimizer=optimizer)
    names = ["mine.0.weight", "mine.0.bias", "mine.2.weight", "mine.4.weight", "mine.4.bias", "2.bias"]
    assert optimizer.param_groups[0]["param_names"] == names
    assert len(optimizer.param_groups[0]["params"]) == 6
    optimizer.state_dict()


def test_gradients_that_the_small_model_has_stay() -> None:
    model = net()
    first, second = torch.optim.SGD(model.parameters(), 0.1), torch.optim.Adam(model.parameters())
    model(batch(0)).square().mean().backward()
    small = pruned(model, optimizer=first)
    small.zero_grad()
    small(batch(1)).square().mean().backward()
    expected = small.stem.weight.grad.clone()
    fxprune.follow(second, model, small)
    assert torch.equal(small.stem.weight.grad, expected)


class _TwoLevels(torch.optim.Optimizer):
    """An optimizer in the form of SAM: another one makes the steps, and shares its groups."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, {})
        self.base_optimizer = torch.optim.Adam(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure: Any = None) -> None:
        self.base_optimizer.step()


class _SeveralInside(torch.optim.Optimizer):
    """An optimizer that holds one for each part of the parameters, and one inside another."""

    def __init__(self, parameters: Any) -> None:
        given = list(parameters)
        super().__init__(given, {})
        self.parts = [_TwoLevels(given[:4], lr=0.01), torch.optim.SGD(given[4:], 0.05, momentum=0.9)]
        self.around = self

    def step(self, closure: Any = None) -> None:
        for part in self.parts:
            part.step()


@pytest.mark.parametrize("named", ["outer", "both", "several"])
def test_the_optimizers_in_an_optimizer_follow_too(named: str) -> None:
    models = model, masked = net(), net()
    made = [
        _SeveralInside(m.parameters()) if named == "several" else _TwoLevels(m.parameters(), lr=0.01) for m in models
    ]
    for each, trains in zip(models, made, strict=True):
        for seed in range(3):
            step(each, trains, seed)
    optimizer, masked_optimizer = made
    told = [optimizer.base_optimizer, optimizer] if named == "both" else optimizer
    small = pruned(model, optimizer=told)
    removed = fxprune.record(small).removed
    zero_removed(masked, removed)
    same_next_steps((model, masked, small), (masked_optimizer, optimizer), removed)


def test_an_optimizer_of_another_model_inside_stays_as_it_is() -> None:
    model, other = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    inner = torch.optim.SGD(other.parameters(), 0.1)
    vars(optimizer)["inner"] = inner
    result = fxprune.follow([optimizer], model, pruned(model))
    assert [each.kind for each in result] == ["SGD"]
    assert inner.param_groups[0]["params"][0] is other.stem.weight
