"""Criteria whose scores compare between groups, each against its formula written in the plainest way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.criteria import fisher_importance, taylor_importance
from tests.support import randomise


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4))
    return randomise(nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3)), 0).double().eval()


X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1])


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def scores(importance: Any) -> list[Tensor]:
    analysis = fxprune.analyze(net(), X)
    found = fxprune.criteria.scores_of(analysis, importance, analysis.groups, None)
    return [torch.from_numpy(found[group.channels]) for group in analysis.groups]


def test_lamp_is_the_share_among_those_that_are_not_smaller() -> None:
    squares = [norm**2 for norm in scores("l2")]
    for own, lamp in zip(squares, scores("lamp"), strict=True):
        wanted = [float(s / own[own >= s].sum()) for s in own]
        assert lamp.tolist() == pytest.approx(wanted)
        assert float(lamp.max()) == 1


def test_bn_scale_is_the_weight_of_the_batch_norm() -> None:
    model = net()
    first, second = scores("bn_scale")
    assert first.tolist() == pytest.approx(model.get_parameter("1.weight").abs().tolist())
    assert second.tolist() == pytest.approx(model.get_parameter("4.weight").abs().tolist())
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(fxprune.PlanError, match="without a batch norm"):
        fxprune.transform(plain, torch.randn(1, 3), ratio=0.5, importance="bn_scale")


def gradients(batches: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    """The gradients of every batch, by parameter."""
    model = net()
    made = []
    for batch in batches:
        model.zero_grad()
        loss(model, batch).backward()
        made.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return made


def of_channels(terms: dict[str, Tensor]) -> list[Tensor]:
    """The sums of |terms| over the outputs of both convolutions and what belongs to them."""
    first = terms["0.weight"].abs().sum((1, 2, 3)) + terms["0.bias"].abs()
    second = terms["3.weight"].abs().sum((1, 2, 3))
    norms = [terms[f"{n}.weight"].abs() + terms[f"{n}.bias"].abs() for n in (1, 4)]
    return [first + norms[0], second + norms[1]]


BATCHES = [(X[:2], Y[:2]), (X[2:4], Y[2:4])]


def test_taylor_is_weight_times_the_gradient_of_the_mean_loss() -> None:
    model = net()
    found = gradients(BATCHES)
    terms = {name: p.detach() * (found[0][name] + found[1][name]) / 2 for name, p in model.named_parameters()}
    made = scores(taylor_importance(model, BATCHES, loss=loss))
    for ours, wanted in zip(made, of_channels(terms), strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-9)


def test_fisher_adds_the_squares_of_all_batches() -> None:
    model = net()
    single = [(X[i : i + 1], Y[i : i + 1]) for i in range(5)]
    found = gradients(single)
    terms = {name: p.detach() ** 2 * sum(one[name] ** 2 for one in found) / 10 for name, p in model.named_parameters()}
    for ours, wanted in zip(scores(fisher_importance(model, single, loss=loss)), of_channels(terms), strict=True):
        assert torch.allclose(ours, wanted, rtol=1e-9)


def test_gradients_modes_and_flags_are_as_before() -> None:
    model = net().train()
    model.get_parameter("0.bias").requires_grad_(False)
    model.get_parameter("0.weight").grad = torch.ones(6, 3, 3, 3, dtype=torch.float64)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    taylor_importance(model, BATCHES, loss=loss)
    assert model.training
    assert not model.get_parameter("0.bias").requires_grad
    assert bool((model.get_parameter("0.weight").grad == 1).all())
    assert model.get_parameter("3.weight").grad is None
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("importance", ["lamp", "bn_scale", "taylor", "fisher"])
def test_they_rank_all_channels_together(importance: str) -> None:
    model = net()
    made: Any = {
        "taylor": lambda: taylor_importance(model, BATCHES, loss=loss),
        "fisher": lambda: fisher_importance(model, BATCHES, loss=loss),
    }.get(importance, lambda: importance)()
    analysis = fxprune.analyze(model, X)
    plan = analysis.plan(keep={"params": 0.6}, scope="global", importance=made, max_ratio=1.0)
    removed = {
        int(i) for name, dims in plan.removed.items() if name in ("0.weight", "3.weight") for i in dims.get(0, [])
    }
    assert removed
    whole, part = analysis.cost(), analysis.cost(plan)
    assert part.params <= 0.6 * whole.params


@pytest.mark.parametrize(
    ("batches", "wrong", "text"),
    [
        ([], loss, "there is no batch"),
        (BATCHES, lambda model, batch: model(batch[0]), "the loss is no scalar"),
        (BATCHES, lambda model, batch: 3.0, "the loss is no scalar"),
        (BATCHES, lambda model, batch: torch.tensor(1.0), "does not depend"),
        (BATCHES, lambda model, batch: loss(model, batch) * float("nan"), "not finite"),
    ],
)
def test_wrong_data_and_losses_are_refused(batches: Any, wrong: Any, text: str) -> None:
    model = net()
    with pytest.raises(fxprune.InputError, match=text):
        taylor_importance(model, batches, loss=wrong)
    assert all(p.grad is None for p in model.parameters())
