"""ThiNet's least squares: factors against the normal equations, errors on held-out samples, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxprune
from fxprune.criteria import sample_contributions, thinet_importance
from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.pruner import rescale_consumers, thinet
from tests.support import randomise


def images(count, seed, batches=4):
    """Images whose channels go together, so that what one channel adds can be told from the others."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    made = torch.randn(batches, count, 2, 6, 6, dtype=torch.float64, generator=generator)
    return list(torch.einsum("bnchw,cd->bndhw", made, mix))


def two_convolutions():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)).double().eval()


class Wide(nn.Module):
    """Batch norm, a residual stream, a concatenation and a flattened head."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 5, 3)
        self.d = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(9 * 16, 7)

    def forward(self, x):
        y = torch.relu(self.bn(self.a(x)))
        y = torch.relu(y + self.b(y))
        return self.head(torch.cat([torch.relu(self.c(y)), torch.tanh(self.d(x))], 1).flatten(1))


def wide(seed=0):
    return randomise(Wide().double().eval(), seed, weights=True)


def test_factors_solve_the_normal_equations():
    model = two_convolutions()
    found = sample_contributions(model, images(16, 0), samples=10)
    analysis = fxprune.analyze(model, images(1, 0)[0])
    plan = analysis.plan(ratio=0.4, seed=1, importance="random")
    gone = plan.removed["2.weight"][1]
    kept = [c for c in range(8) if c not in gone]
    scaled = rescale_consumers(analysis, plan, found)
    x = found.layers["2"].parts
    y, x_kept = x.sum(1), x[:, kept]
    expected = torch.linalg.solve(x_kept.T @ x_kept, x_kept.T @ y)
    factor = scaled[2].weight / model[2].weight
    for channel, value in zip(kept, expected, strict=True):
        assert torch.allclose(factor[:, channel], value.expand_as(factor[:, channel]), rtol=1e-6)
    assert torch.equal(scaled[2].weight[:, gone], model[2].weight[:, gone])
    assert (expected - 1).abs().max() > 0.05, "there was something to make up for"
    for name, tensor in model.state_dict().items():
        if name != "2.weight":
            assert torch.equal(scaled.state_dict()[name], tensor)


def test_the_error_on_held_out_images_is_smaller_with_scaling():
    for seed in range(2):
        torch.manual_seed(seed)
        model = two_convolutions()
        loader, held = images(32, seed), images(64, 1000 + seed, batches=1)[0]
        for ratio in (0.25, 0.5, 0.75):
            both = [thinet(model, held[:1], loader, ratio=ratio, rescale=rescale) for rescale in (True, False)]
            assert fxprune.record(both[0]).removed == fxprune.record(both[1]).removed
            errors = [float((small(held) - model(held)).square().mean().detach()) for small in both]
            assert errors[0] < errors[1], (seed, ratio)


def test_a_channel_that_another_one_can_stand_in_for_costs_nothing():
    """Channel 1 is twice channel 0: without it, three times channel 0 does the same on every image."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 2, 1)).double().eval()
    with torch.no_grad():
        model[0].weight[1] = 2 * model[0].weight[0]
        model[2].weight[:, 1] = model[2].weight[:, 0]
    loader, held = images(16, 0), images(16, 1, batches=1)[0]
    small = thinet(model, held[:1], loader, ratio=0.5)
    assert torch.allclose(small(held), model(held), atol=1e-9)
    plain = thinet(model, held[:1], loader, ratio=0.5, rescale=False)
    assert not torch.allclose(plain(held), model(held), atol=1e-3)


def test_slots_of_a_channel_share_a_factor_also_after_a_concatenation():
    model = wide()
    x = images(24, 3)
    found = sample_contributions(model, x, samples=20)
    analysis = fxprune.analyze(model, x[0])
    plan = analysis.plan(ratio=0.4, importance=thinet_importance(model, x))
    scaled = rescale_consumers(analysis, plan, found)
    factor = (scaled.head.weight / model.head.weight).reshape(7, 9, 16)
    assert torch.allclose(factor, factor[:1, :, :1].expand_as(factor), rtol=1e-9)
    gone = sorted({slot // 16 for slot in plan.removed["head.weight"][1]})
    kept = [c for c in range(9) if c not in gone]
    assert len(gone) == 3, "floor(0.4 * 5) + floor(0.4 * 4)"
    columns = found.layers["head"].parts.reshape(-1, 9, 16).sum(2)
    expected = torch.linalg.solve(columns[:, kept].T @ columns[:, kept], columns[:, kept].T @ columns.sum(1))
    assert torch.allclose(factor[0, kept, 0], expected, rtol=1e-6)
    for name in ("b.weight", "c.weight"):  # readers of the residual stream, of which b loses outputs too
        assert not torch.equal(scaled.get_parameter(name), model.get_parameter(name))
    small = fxprune.transform(scaled, x[0], plan=plan)
    assert fxprune.verify(scaled, small, images(5, 9, batches=1)[0]) < 1e-9


def test_samples_of_removed_outputs_do_not_count():
    model = wide()
    x = images(24, 3)
    found = sample_contributions(model, x, samples=20)
    analysis = fxprune.analyze(model, x[0])
    plan = analysis.plan(ratio=0.4, importance=thinet_importance(model, x))
    gone_outputs, gone = plan.removed["b.weight"][0], plan.removed["b.weight"][1]
    kept = [c for c in range(6) if c not in gone]
    sampled = found.layers["b"]
    rows = torch.tensor([o not in gone_outputs for o in sampled.outputs.tolist()])
    parts = sampled.parts[rows]
    assert 0 < len(parts) < len(sampled.parts)
    expected = torch.linalg.solve(parts[:, kept].T @ parts[:, kept], parts[:, kept].T @ parts.sum(1))
    factor = (rescale_consumers(analysis, plan, found).b.weight / model.b.weight)[0, kept, 0, 0]
    assert torch.allclose(factor, expected, rtol=1e-6)


def test_weights_that_the_samples_leave_open_stay_as_they_are():
    model = two_convolutions()
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0.0, -1.0  # never passes the ReLU
    analysis = fxprune.analyze(model, images(1, 0)[0])
    keep = torch.tensor([True, False, True, True, True, True, False, True])
    plan = analysis.plan(masks={"0": keep})
    scaled = rescale_consumers(analysis, plan, sample_contributions(model, images(16, 0)))
    assert torch.allclose(scaled[2].weight[:, 3], model[2].weight[:, 3], rtol=1e-12, atol=0)
    assert not torch.allclose(scaled[2].weight[:, 2], model[2].weight[:, 2], rtol=1e-3)


def test_grouped_consumers_share_factors_over_their_groups():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 1))
    )
    model = randomise(model.double().eval(), 0, weights=True)
    x = images(24, 5)
    analysis = fxprune.analyze(model, x[0])
    found = sample_contributions(model, x)
    plan = analysis.plan(ratio={"0:block width": 0.5}, importance=thinet_importance(model, x))
    scaled = rescale_consumers(analysis, plan, found)
    gone = plan.removed["2.weight"][1]
    kept = [c for c in range(4) if c not in gone]
    parts = found.layers["2"].parts
    expected = torch.linalg.solve(parts[:, kept].T @ parts[:, kept], parts[:, kept].T @ parts.sum(1))
    factor = (scaled[2].weight / model[2].weight)[:, kept, 0, 0]
    assert torch.allclose(factor, expected.expand_as(factor), rtol=1e-6)
    assert fxprune.verify(scaled, fxprune.transform(scaled, x[0], plan=plan), x[1]) < 1e-9


def test_thinet_is_importance_plan_scaling_and_transform():
    model = wide()
    x = images(24, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = thinet(model, x[0], x, ratio=0.4, samples=6, seed=2, ignore="a", round_to=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    found = sample_contributions(model, x, samples=6, seed=2)
    analysis = fxprune.analyze(model, x[0])
    importance = thinet_importance(model, x, samples=6, seed=2)
    plan = analysis.plan(ratio=0.4, importance=importance, ignore="a", round_to=2)
    expected = fxprune.transform(rescale_consumers(analysis, plan, found), x[0], plan=plan)
    assert torch.equal(small(x[1]), expected(x[1]))
    assert small.get_submodule("a").out_channels == 6
    assert fxprune.record(small).removed == plan.removed
    own = thinet(model, x[0], x, ratio=0.4, prefer="class")
    assert type(own) is Wide
    assert own.a.out_channels == 4


def test_layer_by_layer_as_in_the_paper():
    model = wide()
    x, held = images(48, 3), images(64, 77, batches=1)[0]
    names = [group.name for group in fxprune.analyze(model, x[0]).groups]
    small = model
    for name in names:
        small = thinet(small, x[0], x, ratio={name: 0.4}, samples=20)
    at_once = thinet(model, x[0], x, ratio=0.4, samples=20)
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in at_once.named_parameters()}
    assert torch.isfinite(small(held)).all()


def test_too_few_samples_are_refused():
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 3)).double().eval()
    x = torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(PlanError) as caught:
        thinet(model, x, [x], ratio=0.25)
    text = str(caught.value)
    assert "too few samples for the least squares of ThiNet" in text
    assert 'at   "2.weight"' in text
    assert "20 samples of its outputs, 30 factors" in text
    assert "give more batches or more samples per input" in text
    assert thinet(model, x, [x], ratio=0.25, rescale=False).get_submodule("0").out_features == 30


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.relu(self.embed(x)))


def test_tied_weights_are_refused():
    model, x = Tied().double().eval(), torch.arange(9)[None]
    with pytest.raises(PlanError) as caught:
        thinet(model, x, [x], ratio=0.5)
    text = str(caught.value)
    assert "a weight cannot be rescaled for one of its uses alone" in text
    assert 'at   "embed.weight"' in text
    assert "it is tied to that of Embedding" in text
    small = thinet(model, x, [x], ratio=0.5, rescale=False)
    assert fxprune.verify(model, small, x) < 1e-12


def test_samples_of_another_model_and_plans_of_another_model_are_refused():
    model, other = two_convolutions(), two_convolutions()
    x = images(4, 0)
    analysis = fxprune.analyze(model, x[0])
    plan = analysis.plan(ratio=0.5)
    with pytest.raises(PlanError, match="the contributions are those of another model"):
        rescale_consumers(analysis, plan, sample_contributions(other, x))
    foreign = fxprune.Plan({"0.weight": {0: [1]}})
    with pytest.raises(PlanError, match="the plan is for another model"):
        rescale_consumers(analysis, foreign, sample_contributions(model, x))


def test_it_warns_where_nothing_is_removed():
    model = two_convolutions()
    with pytest.warns(NothingRemovedWarning):
        thinet(model, images(1, 0)[0], images(4, 0), ratio=0.01)
