"""Criteria whose scores compare between groups, each against its formula written in the plainest way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.criteria import (
    MEASURED,
    fisher_importance,
    in_loss,
    load_scores,
    product,
    save_scores,
    taylor_importance,
)
from fxprune.planning.scopes import SCOPES
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


def ranked(analysis: fxprune.Analysis, made: Any, costs: dict[str, float], gone: int) -> dict[str, int]:
    """The widths that are left if the channels go that are worth least for their cost, so many of all groups."""
    values = [
        (float(score) / costs[group.name], group.name)
        for group in analysis.groups
        for score in torch.as_tensor(made(group))
    ]
    names = [name for _, name in sorted(values)[:gone]]
    return {group.name: max(group.size - names.count(group.name), 1) for group in analysis.groups}


@pytest.mark.parametrize("how", ["taylor", "fisher", "fisher_gate", "own", "saved"])
@pytest.mark.parametrize("key", ["macs", "params"])
def test_changes_of_the_loss_are_divided_by_what_a_channel_costs(how: str, key: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).double().eval()
    analysis = fxprune.analyze(model, X)
    made: Any = MEASURED["taylor" if how in ("own", "saved") else how](model, BATCHES, loss=loss)
    given = made
    if how == "saved":
        save_scores(analysis.scores(made), tmp_path / "scores.json")
        given = load_scores(tmp_path / "scores.json")
    elif how == "own":

        def given(group: Any) -> Any:
            return made(group)

        given.comparable = given.in_loss = True
    costs = {}
    for group in analysis.groups:
        less = analysis.cost(analysis.plan(counts={group.name: group.size - 1}))
        costs[group.name] = float(getattr(analysis.cost(), key) - getattr(less, key))
    found = []

    def scope(*arguments: Any) -> Any:
        found.append(SCOPES["global"](*arguments))
        return found[0]

    analysis.plan(keep={key: 0.6}, scope=scope, importance=given, max_ratio=1.0)
    names = {group.number: group.name for group in analysis.groups}
    sizes = {group.number: group.size for group in analysis.groups}
    for gone in range(1, 20):
        left = {names[number]: sizes[number] - count for number, count in found[0](gone / 28).items()}
        assert left == ranked(analysis, made, costs, gone)
    whole = dict.fromkeys(costs, 1.0)
    assert any(ranked(analysis, made, costs, gone) != ranked(analysis, made, whole, gone) for gone in range(1, 20))


def test_shares_that_compare_are_not_divided_by_costs() -> None:
    model = net()
    gradients = taylor_importance(model, BATCHES, loss=loss)
    assert in_loss(gradients)
    for importance in ("lamp", "bn_scale", "l2", product("lamp", "l2"), product(gradients, "lamp")):
        assert not in_loss(importance)
    assert not fxprune.analyze(model, X).scores("lamp").in_loss


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
