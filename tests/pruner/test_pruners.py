"""The ready pruners: which outputs they prune, how many, and when."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import fxprune
from fxprune.criteria import filter_norms, geometric_median, geometric_median_distances
from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.pruner import FPGMPruner, L1Pruner, L2Pruner, RandomPruner, SaliencyPruner
from fxprune.schedules import AGP, Constant, Linear
from tests.pruner.pruners import small_resnet


def rows(weight, dim):
    """The filters of a weight as lists of numbers."""
    return [weight.select(dim, i).double().flatten().tolist() for i in range(weight.shape[dim])]


def norm(row, p):
    return sum(abs(v) ** p for v in row) ** (1 / p)


def distances(filters):
    return [sum(math.dist(a, b) for b in filters) for a in filters]


@pytest.mark.parametrize(("shape", "dim"), [((5, 7), 0), ((4, 6, 3, 3), 1), ((6, 2, 5), 0), ((8,), 0)])
def test_scores_of_filters_against_loops(shape, dim):
    weight = torch.randn(shape)
    assert filter_norms(weight, 1, dim).tolist() == pytest.approx([norm(r, 1) for r in rows(weight, dim)], rel=1e-12)
    assert filter_norms(weight, 2, dim).tolist() == pytest.approx([norm(r, 2) for r in rows(weight, dim)], rel=1e-12)
    assert geometric_median_distances(weight, dim).tolist() == pytest.approx(distances(rows(weight, dim)), rel=1e-12)


def test_distances_are_exact_far_from_zero_and_in_blocks(monkeypatch):
    """100 filters of 30 numbers around 1e6, where squares of norms would swallow the distances."""
    weight = 1e6 + torch.randn(100, 30, dtype=torch.float64)
    expected = distances(rows(weight, 0))
    assert geometric_median_distances(weight).tolist() == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(geometric_median, "BLOCK", 700)
    assert geometric_median_distances(weight).tolist() == pytest.approx(expected, rel=1e-9)


def lowest(scores, count):
    return set(sorted(range(len(scores)), key=lambda i: scores[i])[:count])


REFERENCES = {
    L1Pruner: lambda w, dim: [norm(r, 1) for r in rows(w, dim)],
    L2Pruner: lambda w, dim: [norm(r, 2) for r in rows(w, dim)],
    FPGMPruner: lambda w, dim: distances(rows(w, dim)),
    SaliencyPruner: lambda w, dim: [norm(r, 1) for r in rows(w, dim)],
}


@pytest.mark.parametrize("kind", REFERENCES, ids=lambda k: k.__name__)
@pytest.mark.parametrize(
    ("make", "dim"),
    [
        (lambda: nn.Linear(5, 12), 0),
        (lambda: nn.Conv2d(3, 12, 3), 0),
        (lambda: nn.ConvTranspose2d(4, 12, 3), 1),
        (lambda: nn.Conv2d(4, 12, 3, groups=4), 0),
    ],
    ids=["linear", "conv", "transposed", "grouped"],
)
def test_the_lowest_scores_are_pruned_and_stay_pruned(kind, make, dim):
    layer = make()
    with torch.no_grad():
        layer.weight.mul_(torch.rand(12).add(0.5).view([-1 if d == dim else 1 for d in range(layer.weight.ndim)]))
    weight = layer.weight.detach().clone()
    pruner = kind(Linear(0.25, 0.75, steps=1))
    pruner.prepare(nn.Sequential(layer))
    pruner.step()
    first = lowest(REFERENCES[kind](weight, dim), 3)
    assert layer.parametrizations.weight[0].pruned_outputs == first
    pruner.step()
    left = [i for i in range(12) if i not in first]
    scores = REFERENCES[kind](weight.index_select(dim, torch.tensor(left)), dim)
    assert layer.parametrizations.weight[0].pruned_outputs == first | {left[i] for i in lowest(scores, 6)}


def test_geometric_median_and_norms_rank_differently():
    """Filters in a cluster far from zero are pruned before a small one that stands alone."""
    layer = nn.Linear(2, 5)
    layer.weight.data = torch.tensor([[5.0, 5.0], [5.0, 5.1], [5.1, 5.0], [5.2, 5.2], [0.1, 0.0]])
    found = {}
    for kind in (L2Pruner, FPGMPruner):
        net = nn.Sequential(copy.deepcopy(layer))
        pruner = kind(0.4)
        pruner.prepare(net)
        pruner.step()
        found[kind] = set(net[0].parametrizations.weight[0].pruned_outputs)
    assert found[L2Pruner] == {0, 4}
    assert 4 not in found[FPGMPruner]


def test_schedules_count_steps():
    net = nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 50))
    schedule = AGP(0.0, 0.8, steps=4)
    pruner = L1Pruner(schedule)
    pruner.prepare(net, ["0", {"name": "1", "sparsity_level": 0.3}])
    for step in range(6):
        pruner.step()
        left = [int(mask.sum()) for mask in pruner.masks().values()]
        assert left == [100 - int(schedule(step) * 100 + 1e-9), 35]
    other = L1Pruner(AGP(0.8, 0.1, steps=2))
    other.prepare(nn.Sequential(nn.Linear(4, 100)))
    for _ in range(3):
        other.step()
        assert int(other.masks()["0"].sum()) == 20, "a level that falls brings nothing back"


def test_random_pruning_repeats_with_a_seed():
    found = []
    for seed in (1, 1, 2):
        pruner = RandomPruner(Constant(0.5), seed=seed)
        pruner.prepare(nn.Sequential(nn.Linear(4, 40)))
        pruner.step()
        found.append(pruner.masks()["0"].tolist())
        assert sum(found[-1]) == 20
    assert found[0] == found[1] != found[2]
    pruner.step()
    assert pruner.masks()["0"].tolist() == found[2], "pruned outputs stay pruned, and no output is drawn again"


def test_taylor_sums_weight_times_gradient():
    net, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double(), torch.randn(16, 5).double()
    with torch.no_grad():
        net[0].weight[0] *= 10  # the largest weights,
        net[2].weight[:, 0] = 0  # which change no output
    pruner = SaliencyPruner(Linear(0.25, 0.5, steps=1), criterion="taylor")
    pruner.prepare(net, ["0"])
    pruned = set()
    for count in (2, 4):
        net.zero_grad()
        net(x).square().sum().backward()
        weight = net[0].parametrizations.weight.original
        change = [
            sum(abs(a * b) for a, b in zip(w, g, strict=True))
            for w, g in zip(weight.tolist(), weight.grad.tolist(), strict=True)
        ]
        pruner.step()
        left = [i for i in range(8) if i not in pruned]
        pruned |= {left[i] for i in lowest([change[i] for i in left], count - len(pruned))}
        assert net[0].parametrizations.weight[0].pruned_outputs == pruned
    assert not torch.equal(weight.abs().sum(1).argsort()[:4].sort().values, torch.tensor(sorted(pruned))), "not |w|"


@pytest.mark.parametrize(("freeze", "text"), [(False, "no backward has reached"), (True, r"is frozen \(requires_grad")])
def test_taylor_without_gradients_is_refused(freeze, text):
    net = nn.Sequential(nn.Linear(5, 8)).requires_grad_(not freeze)
    pruner = SaliencyPruner(0.5, criterion="taylor")
    pruner.prepare(net)
    with pytest.raises(PlanError, match=f'the criterion is the gradient, .*\n.*layer "0"\n.*{text}.*\n.*zero_grad'):
        pruner.step()
    assert pruner.masks()["0"].all()
    with pytest.raises(PlanError, match="no criterion 'hessian'"):
        SaliencyPruner(criterion="hessian")


@pytest.mark.parametrize("level", [1.0, -0.1, "half", True, None, lambda step: float("nan")])
def test_levels_outside_zero_to_one_are_refused(level):
    with pytest.raises(PlanError, match="sparsity_level must be"):
        L1Pruner(level)
    pruner = L1Pruner()
    pruner.prepare(nn.Sequential(nn.Linear(4, 6)), [{"name": "0", "sparsity_level": level}])
    with pytest.raises(PlanError, match=r'sparsity_level must be .*\n  at   layer "0"'):
        pruner.step()


def test_a_setting_that_does_not_exist_is_refused():
    pruner = L1Pruner()
    net = nn.Sequential(nn.Linear(4, 6))
    with pytest.raises(PlanError, match="there is no setting 'sparsity'\n"):
        pruner.prepare(net, [{"name": "0", "sparsity": 0.1}])
    assert not hasattr(net[0], "parametrizations"), "nothing is changed"


def test_nan_in_a_weight_is_refused():
    net = nn.Sequential(nn.Linear(4, 6))
    net[0].weight.data[2, 1] = torch.nan
    pruner = L2Pruner()
    pruner.prepare(net)
    with pytest.raises(PlanError, match=r'scores are NaN\n  at   layer "0"\n.*1 of 6'):
        pruner.step()


def test_nothing_asked_for_is_no_reason_to_warn_and_nothing_rounded_is():
    pruner = L1Pruner(Linear(0.0, 0.1, steps=1))
    pruner.prepare(nn.Sequential(nn.Linear(4, 6)))
    pruner.step()
    with pytest.warns(NothingRemovedWarning, match="sparsity_level of 0.1 is less than one of the 6 outputs"):
        pruner.step()


# -- the same criterion in the pass -----------------------------------------------------------------------------


def test_importance_fpgm_scores_the_producer():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    plan = fxprune.analyze(net, torch.randn(1, 3, 8, 8)).plan(ratio=0.5, importance="fpgm")
    assert set(plan.removed["0.weight"][0]) == lowest(distances(rows(net[0].weight, 0)), 4)


def test_importance_fpgm_of_a_channel_with_several_slots():
    """Concatenated halves that are added tie slot i to slot i + 4 of one layer: their distances add up."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.head = nn.Linear(3, 8), nn.Linear(4, 2)

        def forward(self, x):
            a, b = torch.relu(self.wide(x)).chunk(2, 1)
            return self.head(a + b)

    net = Halves().eval()
    plan = fxprune.analyze(net, torch.randn(2, 3)).plan(ratio=0.5, importance="fpgm")
    single = distances(rows(net.wide.weight, 0))
    assert set(plan.removed["head.weight"][1]) == lowest([single[i] + single[i + 4] for i in range(4)], 2)


def test_importance_fpgm_prunes_a_model_and_refuses_what_it_cannot_rank():
    net, x = small_resnet(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    small = fxprune.transform(net, x, ratio=0.5, importance="fpgm")
    assert fxprune.verify(net, small, x) < 1e-9
    net.stem.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(PlanError, match="the weights contain NaN"):
        fxprune.analyze(net, x).plan(ratio=0.5, importance="fpgm")
    with pytest.raises(PlanError, match="use one of fpgm, l1, l2, bn_scale, lamp, random"):
        fxprune.analyze(net, x).plan(ratio=0.5, importance="fgpm")
