"""Elements whose gradient is zero do not move, whatever the optimizer remembers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fxprune.errors import PlanError
from fxprune.sparse import ThresholdActivation, freeze_zero_gradients
from tests.document_models import SparseActivationModel

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
    "AdamW, amsgrad, for loop": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1, amsgrad=True, foreach=False),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9, weight_decay=0.1, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1, weight_decay=0.1, initial_accumulator_value=0.5),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.1, weight_decay=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 0.1, weight_decay=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.1, weight_decay=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.1, weight_decay=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_weights_of_zero_activations_are_not_modified(make):
    """The masks change in every step, as the document's do when they are applied again."""
    model = SparseActivationModel(threshold=0.1)
    optimizer = make(model.parameters())
    freeze_zero_gradients(optimizer)
    moved = 0
    for _ in range(30):
        model.apply_activation_sparsity()
        before = copy.deepcopy(model.state_dict())
        optimizer.zero_grad()
        model(torch.randn(8, 10)).sub(1).square().sum().backward()
        model.backward()
        zero = {name: p.grad == 0 for name, p in model.named_parameters()}
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter[zero[name]], before[name][zero[name]])
            moved += int((parameter != before[name]).sum())
        assert zero["fc1.weight"][model.fc1.activation_mask].all()
    assert moved > 30


@pytest.mark.parametrize("kind", ["SGD", "SGD, Nesterov", "RMSprop", "Adagrad", "Adadelta", "Rprop"])
def test_an_element_is_trained_as_if_the_steps_without_its_gradient_were_not(kind):
    """Against an optimizer of one element that makes only the steps in which its gradient is not zero."""
    grads = torch.tensor([0.0, 1.5, 0.0, -0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    ours = nn.Parameter(torch.tensor([0.7, 0.3], dtype=torch.float64))
    alone = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))
    optimizers = OPTIMIZERS[kind]([ours]), OPTIMIZERS[kind]([alone])
    freeze_zero_gradients(optimizers[0])
    for grad in grads:
        ours.grad = torch.stack((grad, torch.ones_like(grad)))
        optimizers[0].step()
        if grad:
            alone.grad = grad[None]
            optimizers[1].step()
    assert torch.equal(ours[:1], alone)
    states = {name: s for name, s in optimizers[0].state[ours].items() if getattr(s, "shape", ()) == ours.shape}
    assert states
    for name, state in states.items():
        assert torch.equal(state[:1], optimizers[1].state[alone][name]), name


def test_dead_units_behind_a_threshold_stay_and_live_ones_train():
    net = nn.Sequential(nn.Linear(4, 6), ThresholdActivation(0.5, magnitude=False), nn.Linear(6, 1))
    with torch.no_grad():
        net[0].bias[:3] = -100
    optimizer = torch.optim.AdamW(net.parameters(), 0.01, weight_decay=0.5)
    stop = freeze_zero_gradients(optimizer)
    before = copy.deepcopy(net)

    def train():
        optimizer.zero_grad()
        net(torch.randn(64, 4)).square().mean().backward()
        optimizer.step()

    for _ in range(10):
        train()
    assert torch.equal(net[0].weight[:3], before[0].weight[:3])
    assert torch.equal(net[2].weight[:, :3], before[2].weight[:, :3])
    assert (net[0].weight[3:] != before[0].weight[3:]).all()
    stop()
    train()
    assert (net[0].weight[:3] != before[0].weight[:3]).all(), "weight decay moves it again"


def test_it_can_be_asked_of_single_parameters():
    a, b = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([a, b], 0.1, weight_decay=0.5)
    freeze_zero_gradients(optimizer, [a])
    for parameter in (a, b):
        parameter.grad = torch.tensor([0.0, 1.0])
    optimizer.step()
    assert (a[0].item(), b[0].item()) == (1.0, pytest.approx(0.95))
    a.grad = None
    optimizer.step()
    assert a[0].item() == 1.0


def test_what_is_no_elementwise_optimizer_or_parameter_of_it_is_refused():
    weight = nn.Parameter(torch.ones(2))
    for wrong in (None, "adam", torch.optim.LBFGS([weight])):
        with pytest.raises(PlanError, match="not an optimizer that works element by element"):
            freeze_zero_gradients(wrong)
    with pytest.raises(PlanError, match=r"does not update 1 of the parameters\n  at   SGD\n.*\(3,\)"):
        freeze_zero_gradients(torch.optim.SGD([weight], 0.1), [weight, nn.Parameter(torch.ones(3))])
