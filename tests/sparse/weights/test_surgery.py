"""Dynamic surgery: masks and gradients against plain loops over the formulas, weights that come back, and refusals."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.schedules import Linear
from fxprune.sparse import DynamicSurgery, InverseDecay, squash_masks


def net():
    return nn.Sequential(nn.Linear(6, 11), nn.Tanh(), nn.Linear(11, 3)).double()


WEIGHTS = ["0.weight", "2.weight"]


def original(model, name):
    return model[int(name[0])].parametrizations.weight.original


def thresholds_by_loop(values, rate, low, high):
    sizes = [abs(v) for v in values if v != 0]
    mean = math.fsum(sizes) / len(sizes)
    deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in sizes) / len(sizes))
    return low * max(mean + rate * deviation, 0), high * max(mean + rate * deviation, 0)


def mask_by_loop(values, mask, low, high):
    result = []
    for value, kept in zip(values, mask, strict=True):
        if abs(value) < low:
            result.append(False)
        elif abs(value) < high:
            result.append(kept)
        else:
            result.append(True)
    return result


@pytest.mark.parametrize("rate", [-0.5, 0.0, 0.7])
def test_thresholds_are_those_of_the_nonzero_weights(rate):
    model = net()
    with torch.no_grad():
        model[0].weight[:3] = 0.0
    before = {name: model[int(name[0])].weight.detach().flatten().tolist() for name in WEIGHTS}
    surgery = DynamicSurgery(model, rate=rate, band=(0.8, 1.3))
    for name, values in before.items():
        assert surgery.thresholds[name] == pytest.approx(thresholds_by_loop(values, rate, 0.8, 1.3), rel=1e-12)


def test_masks_follow_the_formula_while_weights_move():
    model = net()
    surgery = DynamicSurgery(model, rate=0.1, probability=1.0)
    masks = {name: [True] * original(model, name).numel() for name in WEIGHTS}
    came_back = went = between = 0
    for _ in range(12):
        surgery.step()
        for name in WEIGHTS:
            low, high = surgery.thresholds[name]
            values = original(model, name).detach().flatten().tolist()
            expected = mask_by_loop(values, masks[name], low, high)
            assert surgery.masks[name].flatten().tolist() == expected
            came_back += sum(new and not old for new, old in zip(expected, masks[name], strict=True))
            went += sum(old and not new for new, old in zip(expected, masks[name], strict=True))
            between += sum(low <= abs(v) < high and not kept for v, kept in zip(values, expected, strict=True))
            masks[name] = expected
        with torch.no_grad():
            for name in WEIGHTS:
                original(model, name).add_(0.1 * torch.randn_like(original(model, name)))
    assert min(came_back, went, between) > 0, "every branch of the formula was taken"


def test_the_gradient_of_the_masked_weight_reaches_all_weights():
    model = net()
    surgery = DynamicSurgery(model, rate=0.2, probability=1.0)
    surgery.step()
    reference = net()
    with torch.no_grad():
        for name in WEIGHTS:
            layer = int(name[0])
            reference[layer].weight.copy_(original(model, name) * surgery.masks[name])
            reference[layer].bias.copy_(model[layer].bias)
    x = torch.randn(5, 6, dtype=torch.float64)
    assert torch.equal(model(x), reference(x))
    model(x).square().sum().backward()
    reference(x).square().sum().backward()
    for name in WEIGHTS:
        gradient = original(model, name).grad
        assert torch.allclose(gradient, reference[int(name[0])].weight.grad, rtol=1e-12)
        assert (gradient[~surgery.masks[name]] != 0).any()
        assert not surgery.masks[name].all()


def test_one_step_of_descent_is_the_papers_update():
    model = net()
    surgery = DynamicSurgery(model, rate=0.2, probability=1.0)
    surgery.step()
    before = {name: original(model, name).detach().clone() for name in WEIGHTS}
    x = torch.randn(5, 6, dtype=torch.float64)
    masked = {name: (before[name] * surgery.masks[name]).requires_grad_() for name in WEIGHTS}
    hidden = torch.tanh(nn.functional.linear(x, masked["0.weight"], model[0].bias.detach()))
    nn.functional.linear(hidden, masked["2.weight"], model[2].bias.detach()).square().sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(x).square().sum().backward()
    optimizer.step()
    for name in WEIGHTS:
        expected = before[name] - 0.01 * masked[name].grad
        assert torch.allclose(original(model, name), expected, rtol=1e-12)


def test_a_wrongly_pruned_weight_comes_back_by_training():
    """y = x0 + x1: the weight of x0 starts below the threshold, training grows it, and surgery splices it back."""
    layer = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, 1.0, 0.01]]))
    surgery = DynamicSurgery(layer, rate=0.0, probability=1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    history = []
    for _ in range(40):
        surgery.step()
        history.append(bool(surgery.masks["weight"][0, 0]))
        x = torch.randn(32, 3, dtype=torch.float64)
        optimizer.zero_grad()
        (layer(x)[:, 0] - x[:, 0] - x[:, 1]).square().mean().backward()
        optimizer.step()
    assert history[0] is False
    assert history[-1] is True
    assert torch.allclose(layer.weight, torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64), atol=0.05)
    assert layer.weight[0, 2].item() == 0


def test_masks_are_updated_with_probability_sigma():
    layer = nn.Linear(30, 30)
    surgery = DynamicSurgery(layer, rate=2.0, probability=InverseDecay(gamma=0.05, power=2.0), seed=3)
    draws = torch.Generator().manual_seed(3)
    looks = 0
    for step in range(200):
        with torch.no_grad():
            layer.parametrizations.weight.original.normal_(0, 0.1)
        before = surgery.masks["weight"].clone()
        surgery.step()
        if float(torch.rand((), generator=draws)) < (1 + 0.05 * step) ** -2.0:
            looks += 1
        else:
            assert torch.equal(surgery.masks["weight"], before)
    expected = sum((1 + 0.05 * step) ** -2.0 for step in range(200))
    assert abs(looks - expected) < 4 * math.sqrt(expected)
    assert surgery.steps == 200


def test_a_sigma_that_falls_to_zero_stops_updates():
    layer = nn.Linear(5, 5)
    surgery = DynamicSurgery(layer, rate=0.0, probability=Linear(1.0, 0.0, steps=3))
    for _ in range(3):
        surgery.step()
    stopped = surgery.masks["weight"].clone()
    for _ in range(5):
        with torch.no_grad():
            layer.parametrizations.weight.original.normal_()
        surgery.step()
        assert torch.equal(surgery.masks["weight"], stopped)


def test_pruned_weights_are_exactly_zero_in_forward_under_adam():
    model = net()
    surgery = DynamicSurgery(model, rate=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(10):
        surgery.step()
        optimizer.zero_grad()
        model(torch.randn(4, 6, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        for name in WEIGHTS:
            weight, mask = model[int(name[0])].weight, surgery.masks[name]
            assert weight[~mask].abs().max() == 0
            assert torch.equal(weight[mask], original(model, name)[mask])
            assert (original(model, name)[~mask] != 0).all(), "what is masked goes on learning"


def test_squash_copy_and_state(tmp_path):
    model = net()
    surgery = DynamicSurgery(model, rate=0.1, seed=1)
    surgery.step()
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = model(x)
    clone = copy.deepcopy(model)
    squash_masks(clone)
    assert torch.equal(clone(x), expected)
    assert type(clone[0]) is nn.Linear
    assert torch.equal(model(x), expected)

    torch.save({"model": model.state_dict(), "surgery": surgery.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = net()
    resumed = DynamicSurgery(other, rate=0.1, seed=7)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["surgery"])
    assert torch.equal(other(x), expected)
    for both in (model, other):
        torch.manual_seed(5)
        with torch.no_grad():
            for name in WEIGHTS:
                original(both, name).add_(0.2 * torch.randn_like(original(both, name)))
    surgery.step()
    resumed.step()
    assert resumed.thresholds == surgery.thresholds
    assert resumed.steps == surgery.steps == 2
    assert all(torch.equal(resumed.masks[n], surgery.masks[n]) for n in WEIGHTS)

    assert surgery.squash() is model
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight != 0, surgery.masks["0.weight"])


def test_rates_per_layer_and_report():
    model = net()
    surgery = DynamicSurgery(model, rate={"2": 0.5}, probability=1.0)
    surgery.step()
    assert list(surgery.masks) == ["2.weight"]
    assert type(model[0]) is nn.Linear
    pruned = int((~surgery.masks["2.weight"]).sum())
    assert surgery.report().splitlines()[2].split() == ["2.weight", "33", str(pruned), f"{pruned / 33:.4f}"]
    assert surgery.sparsities == {"2.weight": pruned / 33}


def test_surgery_warns_where_it_prunes_nothing_or_everything():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.1], [1.1, 1.0]]))
    surgery = DynamicSurgery(layer, rate=0.0, probability=1.0)
    with pytest.warns(NothingRemovedWarning, match="step 0 pruned nothing: no weight lies below its threshold") as w:
        surgery.step()
    assert w[0].filename == __file__
    layer = nn.Linear(2, 2)
    surgery = DynamicSurgery(layer, rate=50.0, probability=1.0)
    with pytest.warns(UserWarning, match='nothing is left of "weight"') as w:
        surgery.step()
    assert w[0].filename == __file__
    surgery = DynamicSurgery(net(), rate=0.0, probability=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surgery.step()  # it did not update the masks


REFUSED = [
    ({"rate": math.nan}, "rate must be a finite number, not nan"),
    ({"rate": "1"}, "rate must be a finite number, not '1'"),
    ({"rate": -50.0}, 'the threshold is not above 0\n  at   "0.weight"\n  why  no weight lies under it'),
    ({"rate": {"1.weight": 0.0}}, 'rate names nothing: "1.weight"'),
    ({"rate": 0.0, "band": (1.1, 0.9)}, "band must be 0 < lower <= upper, not (1.1, 0.9)"),
    ({"rate": 0.0, "band": (0.0, 0.9)}, "band must be 0 < lower <= upper"),
    ({"rate": 0.0, "band": 0.9}, "band must be two numbers, not 0.9"),
    ({"rate": 0.0, "probability": 1.5}, "probability must be a number in [0, 1], not 1.5"),
    ({"rate": 0.0, "probability": 0.0}, "the probability is 0 at the first step"),
    ({"rate": 0.0, "seed": -1}, "seed must be an integer of at least 0, not -1"),
    ({"rate": 0.0, "where": "fc"}, 'where names nothing: "fc"'),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[r[1][:50] for r in REFUSED])
def test_surgery_refuses_bad_arguments(options, message):
    model = net()
    with pytest.raises(PlanError) as caught:
        DynamicSurgery(model, **options)
    assert message in str(caught.value)
    assert type(model[0]) is nn.Linear, "the model was changed"


@pytest.mark.parametrize(("gamma", "power"), [(-1.0, 1.0), (1.0, -1.0), (math.inf, 1.0), ("a", 1.0)])
def test_inverse_decay_refuses_bad_arguments(gamma, power):
    with pytest.raises(PlanError, match="must be a number of at least 0"):
        InverseDecay(gamma=gamma, power=power)


def test_errors_after_the_first_step_leave_the_masks():
    surgery = DynamicSurgery(net(), rate=0.0, probability=lambda step: 1.0 - 2 * step)
    surgery.step()
    with pytest.raises(PlanError, match=r"probability must be a number in \[0, 1\], not -1.0"):
        surgery.step()
    assert surgery.steps == 1
    with torch.no_grad():
        original(surgery.model, "0.weight")[0, 0] = math.nan
    surgery.steps = 0
    with pytest.raises(PlanError, match="a weight contains NaN"):
        surgery.step()
    state = DynamicSurgery(net()[0], rate=0.0).state_dict()
    with pytest.raises(PlanError, match="the state is that of a surgery on other weights"):
        surgery.load_state_dict(state)
