"""Complex weights count by their absolute values: a phase that changes no result of the model changes no score."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.criteria import filter_norms, geometric_median_distances, lp
from fxprune.pruner import FPGMPruner, L1Pruner, L2Pruner, SaliencyPruner, ScoredPruner
from fxprune.regularizers import GroupLasso, GroupSparsity, GrowingRegularization, Regularizer

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DATA = list(torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).split(8))
WITH_LOSS = ("taylor", "fisher", "fisher_gate")


class Phases(nn.Module):
    """The absolute values of a complex layer, twice, and a real layer that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8, dtype=torch.cdouble), nn.Linear(8, 10, dtype=torch.cdouble)
        self.head = nn.Linear(10, 3, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x.to(torch.cdouble)).abs())
        out: torch.Tensor = self.head(self.second(hidden.to(torch.cdouble)).abs())
        return out


@pytest.fixture(scope="module")
def nets() -> tuple[Phases, Phases]:
    """A model, and the same one with the phases of its complex weights turned."""
    torch.manual_seed(0)
    model = Phases().eval()
    turned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (*turned.first.parameters(), *turned.second.parameters()):
            parameter.mul_(complex(math.cos(1.2), math.sin(1.2)))
    assert torch.allclose(model(X), turned(X))
    return model, turned


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    value: torch.Tensor = model(batch).square().mean()
    return value


@pytest.mark.parametrize(
    "name", ["l1", "l2", "lamp", "fpgm", *WITH_LOSS, "activation_mean", "activation_variance", "thinet"]
)
def test_a_phase_changes_no_score(nets: tuple[Phases, Phases], name: str) -> None:
    given: dict[str, Any] = {} if name in ("l1", "l2", "lamp", "fpgm") else {"data": DATA}
    if name in WITH_LOSS:
        given["loss"] = loss
    ours, theirs = (_scores(net, name, given) for net in nets)
    assert len(ours) == 2
    for a, b in zip(ours, theirs, strict=True):
        assert len(set(a.tolist())) > 1
        assert torch.allclose(a, b, rtol=1e-9)


def _scores(model: nn.Module, name: str, given: dict[str, Any]) -> list[torch.Tensor]:
    analysis = fxprune.analyze(model, X)
    scores = analysis.scores(name, **given)
    return [scores(group) for group in analysis.groups]


def test_complex_numbers_count_by_their_absolute_values(nets: tuple[Phases, Phases]) -> None:
    model, _ = nets
    group = fxprune.analyze(model, X).groups[0]
    parts = [model.first.weight, model.first.bias[:, None], model.second.weight.T]
    rows = torch.cat(parts, 1).detach().abs()
    plan = fxprune.analyze(model, X).plan(ratio={"first": 0.5})
    assert plan.removed["first.bias"][0] == sorted(rows.norm(dim=1).argsort()[:4].tolist())
    assert torch.allclose(lp(1)(group), rows.sum(1))
    weight = model.first.weight.detach()
    assert torch.allclose(filter_norms(weight, 1), weight.abs().sum(1))
    apart = (weight[:, None] - weight[None]).abs().square().sum(-1).sqrt().sum(1)
    assert torch.allclose(geometric_median_distances(weight), apart)


@pytest.mark.parametrize("pruner", [L1Pruner, L2Pruner, FPGMPruner, SaliencyPruner])
def test_a_phase_changes_no_mask(nets: tuple[Phases, Phases], pruner: type[ScoredPruner]) -> None:
    masks = []
    for net in nets:
        net, made = copy.deepcopy(net), pruner(0.5)
        made.prepare(net, [{"tensor_fqn": "first.weight"}])
        made.step()
        masks.append(fxprune.masks_of(net)["first"])
    assert torch.equal(*masks)


def test_penalties_on_complex_weights(nets: tuple[Phases, Phases]) -> None:
    model, turned = nets
    plan = fxprune.analyze(model, X).plan(ratio={"first": 0.5})

    def made(net: Phases) -> list[Regularizer]:
        growing = GrowingRegularization(net, plan, delta=1.0, every=1)
        growing.step()
        return [GroupLasso(net, X, 1.0), GroupSparsity(net, X, 1.0), growing]

    for one, other in zip(made(model), made(turned), strict=True):
        assert one() > 0
        assert torch.allclose(one(), other())
    gone = plan.removed["first.bias"][0]
    squares = [model.first.weight[gone], model.first.bias[gone], model.second.weight[:, gone]]
    assert torch.allclose(made(model)[2](), sum((w.abs().square().sum() for w in squares), torch.zeros(())) / 2)
    lasso = GroupLasso(model, X, 1.0)
    rows = torch.cat([model.first.weight, model.first.bias[:, None], model.second.weight.T], 1).abs()
    more = torch.cat([model.second.weight.abs(), model.second.bias[:, None].abs(), model.head.weight.T.abs()], 1)
    assert torch.allclose(lasso(), 17**0.5 * rows.norm(dim=1).sum() + 12**0.5 * more.norm(dim=1).sum())
