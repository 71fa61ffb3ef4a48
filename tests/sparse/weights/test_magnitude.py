"""Magnitude pruning: pruned weights against plain loops, zeros under any optimizer, and refusals."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import NothingRemovedWarning, PlanError
from fxprune.schedules import AGP, Constant, Linear
from fxprune.sparse import MagnitudePruner, WeightMask, squash_masks


class Net(nn.Module):
    """Two convolutions, a norm, two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 6, 3, groups=1)
        self.fc = nn.Sequential(nn.Linear(6 * 4, 7), nn.ReLU(), nn.Linear(7, 3))

    def forward(self, x):
        x = self.conv2(torch.relu(self.bn(self.conv1(x))))
        return self.fc(torch.relu(x).flatten(1))


WEIGHTS = ["conv1.weight", "conv2.weight", "fc.0.weight", "fc.2.weight"]


def net(dtype=torch.float64):
    return Net().to(dtype)


def dense_of(model, name):
    """The values of a weight, those under a mask included."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if hasattr(module, "parametrizations"):
        return module.parametrizations[leaf].original.detach()
    return getattr(module, leaf).detach()


def used(model, name):
    """The values of a weight as the layer uses it."""
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf).detach()


def by_loop(values, already, count):
    """The mask of one list of numbers: sort by (is not pruned yet, magnitude, position), drop the first `count`."""
    order = sorted(range(len(values)), key=lambda i: (not already[i], abs(values[i]), i))
    gone = set(order[:count]) | {i for i, dead in enumerate(already) if dead}
    return [i not in gone for i in range(len(values))]


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 2, 4, 4, dtype=torch.float64)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("sparsity", [0.1, 0.37, 0.5, 0.95])
def test_per_layer_agrees_with_a_loop(sparsity):
    model = net()
    before = {name: dense_of(model, name).clone() for name in WEIGHTS}
    pruner = MagnitudePruner(model, sparsity=sparsity)
    pruner.step()
    assert list(pruner.masks) == WEIGHTS
    for name, values in before.items():
        flat = values.flatten().tolist()
        expected = by_loop(flat, [False] * len(flat), int(sparsity * len(flat)))
        assert pruner.masks[name].flatten().tolist() == expected, name
        assert torch.equal(used(model, name), values * pruner.masks[name])
        assert pruner.sparsities[name] == int(sparsity * len(flat)) / len(flat)


@pytest.mark.parametrize("sparsity", [0.2, 0.6])
def test_global_agrees_with_a_loop(sparsity):
    model = net()
    with torch.no_grad():
        model.conv1.weight.mul_(0.4)  # most of what is pruned stands in one layer
        model.conv1.weight[0, 0, 0, 0] = 10  # but not all of it
    flat = torch.cat([dense_of(model, name).flatten() for name in WEIGHTS]).tolist()
    pruner = MagnitudePruner(model, sparsity=sparsity, scope="global")
    pruner.step()
    expected = by_loop(flat, [False] * len(flat), int(sparsity * len(flat)))
    assert torch.cat([mask.flatten() for mask in pruner.masks.values()]).tolist() == expected
    shares = pruner.sparsities
    assert shares["conv1.weight"] > shares["conv2.weight"]


def test_equal_magnitudes_are_pruned_in_order_and_no_more_than_asked():
    layer = nn.Linear(8, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0, 1.0, 2.0, -1.0, 1.0, 0.5, 1.0]]))
    MagnitudePruner(layer, sparsity=0.5).step()
    assert layer.weight.tolist() == [[0.0, 0.0, 0.0, 2.0, -1.0, 1.0, 0.0, 1.0]]


def test_pruned_stays_pruned_through_a_schedule_and_training():
    model = net()
    schedule = AGP(0.2, 0.8, steps=4)
    pruner = MagnitudePruner(model, sparsity=schedule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    dead = {name: torch.zeros_like(dense_of(model, name), dtype=torch.bool) for name in WEIGHTS}
    for step in range(5):
        expected = {}
        for name in WEIGHTS:
            values = dense_of(model, name).flatten().tolist()
            count = int(schedule(step) * len(values) + 1e-9)
            expected[name] = by_loop(values, dead[name].flatten().tolist(), count)
        pruner.step()
        for name, mask in pruner.masks.items():
            assert mask.flatten().tolist() == expected[name], (step, name)
            dead[name] = ~mask
        train(model, optimizer)
    assert all(abs(s - 0.8) < 0.05 for s in pruner.sparsities.values())


@pytest.mark.parametrize("std_of", ["all", "left"])
def test_quality_is_a_threshold_in_deviations_of_what_is_left(std_of):
    model = net()
    pruner = MagnitudePruner(model, quality=0.6)
    if std_of == "left":
        pruner.step()
        assert pruner.sparsities["conv2.weight"] > 0
    before = {name: (dense_of(model, name).clone(), pruner.masks[name].clone()) for name in WEIGHTS}
    pruner.step()
    for name, (values, mask) in before.items():
        left = [v for v, kept in zip(values.flatten().tolist(), mask.flatten().tolist(), strict=True) if kept]
        mean = math.fsum(left) / len(left)
        deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in left) / len(left))
        expected = mask & (values.abs() >= 0.6 * deviation)
        assert torch.equal(pruner.masks[name], expected), name
        assert 0 < pruner.sparsities[name] < 1


def test_quality_may_differ_per_layer():
    model = net()
    pruner = MagnitudePruner(model, quality={"conv*": 0.3, "fc.2": Constant(0.8)})
    pruner.step()
    assert list(pruner.sparsities) == ["conv1.weight", "conv2.weight", "fc.2.weight"]
    assert torch.equal(
        pruner.masks["fc.2.weight"],
        dense_of(model, "fc.2.weight").abs() >= 0.8 * dense_of(model, "fc.2.weight").std(correction=0),
    )
    assert type(model.fc[0]) is nn.Linear


def test_sparsity_may_differ_per_layer_and_where_chooses_layers():
    model = net()
    pruner = MagnitudePruner(model, sparsity={"fc.*": 0.5, "fc.2": Linear(0.0, 0.9, steps=1)}, where=nn.Linear)
    pruner.step()
    pruner.step()
    assert pruner.sparsities == {"fc.0.weight": 84 / 168, "fc.2.weight": 18 / 21}


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_are_exact_under_an_optimizer_that_remembers(name):
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)  # moments that would go on moving the weights
    pruner = MagnitudePruner(model, sparsity=0.6)
    pruner.step()
    masks = {key: mask.clone() for key, mask in pruner.masks.items()}
    before = {key: used(model, key).clone() for key in WEIGHTS}
    train(model, optimizer, 10)
    for key, mask in masks.items():
        assert torch.equal(pruner.masks[key], mask)
        assert used(model, key)[~mask].abs().max() == 0.0, key
        assert (used(model, key) != before[key])[mask].all(), "the others are trained"
        gradient = model.get_submodule(key.rpartition(".")[0]).parametrizations.weight.original.grad
        assert gradient[~mask].abs().max() == 0.0


def test_the_parameters_stay_the_same_objects():
    model = net()
    parameters = {id(p) for p in model.parameters()}
    pruner = MagnitudePruner(model, sparsity=0.5)
    pruner.step()
    assert {id(p) for p in model.parameters()} == parameters
    assert pruner.squash() is model
    assert {id(p) for p in model.parameters()} == parameters


def test_squash_changes_no_output_and_leaves_plain_layers():
    model, plain = net().eval(), net()
    pruner = MagnitudePruner(model, sparsity=0.5)
    pruner.step()
    masks = pruner.masks
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    expected = model(x)
    pruner.squash()
    assert torch.equal(model(x), expected)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert set(model.state_dict()) == set(plain.state_dict())
    for name in WEIGHTS:
        assert torch.equal(used(model, name) != 0, masks[name])
    with pytest.raises(PlanError) as caught:
        pruner.step()
    assert "the masks of this pruner were taken off" in str(caught.value)
    assert "do   make a new pruner" in str(caught.value)


def test_masks_survive_a_state_dict(tmp_path):
    model = net().eval()
    pruner = MagnitudePruner(model, sparsity=Linear(0.3, 0.7, steps=2))
    pruner.step()
    pruner.step()
    torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = net().eval()
    resumed = MagnitudePruner(other, sparsity=Linear(0.3, 0.7, steps=2))
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["pruner"])
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    assert torch.equal(other(x), model(x))
    pruner.step()
    resumed.step()
    assert {n: m.tolist() for n, m in resumed.masks.items()} == {n: m.tolist() for n, m in pruner.masks.items()}
    assert resumed.sparsities["fc.0.weight"] == 117 / 168  # floor(0.7 * 168)


def test_deep_copies_are_independent():
    model = net().eval()
    pruner = MagnitudePruner(model, sparsity=0.5)
    pruner.step()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    expected = model(x)
    clone = copy.deepcopy(model)
    squash_masks(clone)
    assert torch.equal(clone(x), expected)
    assert torch.equal(model(x), expected), "squashing a copy breaks the original"
    assert not any(isinstance(m, WeightMask) for m in clone.modules())
    with torch.no_grad():
        clone.conv1.weight.zero_()
    assert torch.equal(model(x), expected)

    other = copy.deepcopy(pruner)
    with torch.no_grad():
        other.model.conv1.parametrizations.weight.original.mul_(2)
    other.squash()
    assert torch.equal(model(x), expected)
    train(model.train(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert used(model, "conv1.weight")[~pruner.masks["conv1.weight"]].abs().max() == 0


def test_tied_weights_have_one_mask():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 5)
            self.head = nn.Linear(5, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    model = Tied()
    pruner = MagnitudePruner(model, sparsity=0.4)
    pruner.step()
    assert list(pruner.masks) == ["embed.weight"]
    assert torch.equal(model.embed.weight, model.head.weight)
    assert int((model.embed.weight == 0).sum()) == 18
    x = torch.arange(9)
    expected = model(x)
    pruner.squash()
    assert model.embed.weight is model.head.weight
    assert torch.equal(model(x), expected)
    assert int((model.embed.weight == 0).sum()) == 18


def test_attention_uses_its_masked_weights():
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).double().eval()
    pruner = MagnitudePruner(model, sparsity=0.5, where=["self_attn.in_proj_weight", nn.Linear])
    pruner.step()
    assert list(pruner.masks) == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]
    reference = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).double().eval()
    reference.load_state_dict({name: used(model, name) for name in reference.state_dict()})
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.allclose(model(x), reference(x), atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(model(x), reference(x), atol=1e-12), "the fused path"


def test_channels_of_a_masked_model_can_be_removed():
    model, x = net().eval(), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    pruner = MagnitudePruner(model, sparsity=0.5)
    pruner.step()
    small = fxprune.transform(model, x, ratio=0.4)
    assert fxprune.verify(model, small, torch.randn(3, 2, 4, 4, dtype=torch.float64)) < 1e-12
    masks = {name: tuple(b.shape) for name, b in small.named_buffers() if name.endswith("mask")}
    assert masks["conv1.parametrizations.weight.0.mask"] == (3, 2, 3, 3)
    squash_masks(model)
    squashed = fxprune.transform(model, x, ratio=0.4)
    assert squashed.get_submodule("conv1").weight.shape == (3, 2, 3, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masks_work_in_half_precision(dtype):
    layer = nn.Linear(16, 4).to(dtype)
    values = layer.weight.detach().clone()
    for scope in ("layer", "global"):
        model = nn.Sequential(copy.deepcopy(layer))
        pruner = MagnitudePruner(model, sparsity=0.5, scope=scope)
        pruner.step()
        flat = values.flatten().tolist()
        assert pruner.masks["0.weight"].flatten().tolist() == by_loop(flat, [False] * 64, 32)
        assert model[0].weight.dtype == dtype
    quality = MagnitudePruner(nn.Sequential(layer), quality=1.0)
    quality.step()
    assert 0.3 < quality.sparsities["0.weight"] < 0.9


def test_moving_the_model_takes_the_masks_along():
    model = net()
    pruner = MagnitudePruner(model, sparsity=Linear(0.2, 0.4, steps=1))
    pruner.step()
    model.float()
    pruner.step()
    assert model.conv1.weight.dtype == torch.float32
    assert pruner.sparsities["conv1.weight"] == 36 / 90
    assert int((model.conv1.weight == 0).sum()) == 36


def test_the_report_has_a_row_per_weight():
    model = net()
    pruner = MagnitudePruner(model, sparsity=0.5, where="fc")
    pruner.step()
    assert pruner.report().splitlines() == [
        "weight         elements    pruned    sparsity",
        "-----------  ----------  --------  ----------",
        "fc.0.weight         168        84      0.5000",
        "fc.2.weight          21        10      0.4762",
        "all                 189        94      0.4974",
    ]
    assert "sparsity=0.500" in repr(model.fc[0])


def test_it_warns_where_nothing_is_pruned():
    layer = nn.Linear(4, 2)
    pruner = MagnitudePruner(layer, sparsity=0.1)
    with pytest.warns(NothingRemovedWarning, match="step 0 pruned nothing: a sparsity of 0.1 leaves every weight") as w:
        pruner.step()
    assert w[0].filename == __file__
    pruner = MagnitudePruner(nn.Linear(4, 2), sparsity=0.5)
    pruner.step()
    with pytest.warns(NothingRemovedWarning, match="step 1 pruned nothing: 4 weights are pruned already, and a sparsi"):
        pruner.step()
    pruner = MagnitudePruner(nn.Linear(4, 2), quality=1e-9)
    with pytest.warns(NothingRemovedWarning, match="a quality of 1e-09 leaves every weight"):
        pruner.step()
    pruner = MagnitudePruner(nn.Linear(4, 2), sparsity=Linear(0.0, 0.5, steps=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.step()  # a schedule that starts at 0 asks for nothing yet


def test_it_warns_where_nothing_is_left():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.mul_(1e-3)
    pruner = MagnitudePruner(model, sparsity=0.5, scope="global")
    with pytest.warns(UserWarning, match='nothing is left of "1.weight": the layer passes nothing on') as caught:
        pruner.step()
    assert caught[0].filename == __file__
    assert int(model[1].weight.count_nonzero()) == 0


def test_more_than_everything_stays_pruned_when_the_schedule_falls():
    layer = nn.Linear(10, 1)
    pruner = MagnitudePruner(layer, sparsity=Linear(0.8, 0.2, steps=1))
    pruner.step()
    before = pruner.masks["weight"].clone()
    with pytest.warns(NothingRemovedWarning, match="8 weights are pruned already"):
        pruner.step()
    assert torch.equal(pruner.masks["weight"], before)


def spectral():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.utils.parametrizations.weight_norm(model[1])
    return model


REFUSED = [
    (net, {}, "say how much goes: exactly one of sparsity and quality"),
    (net, {"sparsity": 0.5, "quality": 1.0}, "say how much goes: exactly one of sparsity and quality"),
    (net, {"sparsity": 1.0}, "sparsity must be a number in [0, 1), not 1.0"),
    (net, {"sparsity": -0.1}, "sparsity must be a number in [0, 1), not -0.1"),
    (net, {"sparsity": 0}, "a sparsity of 0 prunes nothing"),
    (net, {"sparsity": "half"}, "sparsity must be a number or a function of the step, not str"),
    (net, {"sparsity": True}, "sparsity must be a number or a function of the step, not bool"),
    (net, {"quality": -1.0}, "quality must be a number of at least 0, not -1.0"),
    (net, {"sparsity": 0.5, "scope": "model"}, "there is no scope 'model'"),
    (net, {"quality": 0.5, "scope": "global"}, 'a quality and scope="global" contradict each other'),
    (net, {"sparsity": {"fc": 0.5}, "scope": "global"}, 'a sparsity per layer and scope="global" contradict'),
    (
        net,
        {"sparsity": {"fcc.0": 0.5}},
        'sparsity names nothing: "fcc.0"\n  why  did you mean "fc.0"?',
    ),
    (net, {"sparsity": {}}, "sparsity is an empty dict"),
    (net, {"sparsity": {"fc.0": 1.5}}, "sparsity must be a number in [0, 1), not 1.5"),
    (net, {"sparsity": 0.5, "where": "conv3"}, 'where names nothing: "conv3"\n  why  did you mean "conv2"?'),
    (net, {"sparsity": 0.5, "where": ""}, 'where names nothing: ""'),
    (net, {"sparsity": 0.5, "where": "bn"}, 'where finds no weights: "bn"'),
    (net, {"sparsity": 0.5, "where": nn.Bilinear}, "where names a type that the model has no module of: Bilinear"),
    (net, {"sparsity": 0.5, "where": nn.Linear(2, 2)}, "where holds a module that is not part of the model: Linear"),
    (net, {"sparsity": 0.5, "where": 3}, "where cannot be a int"),
    (net, {"sparsity": 0.5, "where": []}, "where names nothing\n  why  the list of patterns is empty"),
    (lambda: 3, {"sparsity": 0.5}, "not a model"),
    (nn.ReLU, {"sparsity": 0.5}, "the model has no weights to prune"),
    (lambda: nn.LSTM(3, 4), {"sparsity": 0.5, "where": "weight_hh_l0"}, "LSTM reads its weights past their attributes"),
    (lambda: nn.Linear(3, 4, device="meta"), {"sparsity": 0.5}, "it is on the meta device and has no values"),
    (spectral, {"sparsity": 0.5}, 'the weight of a layer is computed, it is no parameter\n  at   "1"'),
    (lambda: nn.DataParallel(nn.Linear(3, 3)), {"sparsity": 0.5}, "DataParallel wraps the model"),
    (lambda: nn.LazyLinear(3), {"sparsity": 0.5}, "the model has lazy modules that were never run"),
]


@pytest.mark.parametrize(("make", "options", "message"), REFUSED, ids=[r[2][:50] for r in REFUSED])
def test_magnitude_pruning_refuses_bad_arguments(make, options, message):
    model = make()
    before = [type(m) for m in model.modules()] if isinstance(model, nn.Module) else []
    with pytest.raises(fxprune.FxpruneError) as caught:
        MagnitudePruner(model, **options)
    assert message in str(caught.value)
    if isinstance(model, nn.Module):
        assert [type(m) for m in model.modules()] == before, "the model was changed"


def test_a_second_pruner_is_refused():
    model = net()
    MagnitudePruner(model, sparsity=0.5)
    with pytest.raises(PlanError) as caught:
        MagnitudePruner(model, sparsity=0.7)
    assert "a parametrization, a weight norm or a mask makes it from other tensors" in str(caught.value)
    assert "make it permanent first (squash" in str(caught.value)


def test_nan_weights_are_refused_now_and_later():
    model = net()
    pruner = MagnitudePruner(model, sparsity=0.5)
    with torch.no_grad():
        model.fc[0].parametrizations.weight.original[0, 0] = math.nan
    with pytest.raises(PlanError, match=r'a weight contains NaN\n  at   "fc.0.weight"'):
        pruner.step()
    assert all(mask.all() for mask in pruner.masks.values())
    assert pruner.steps == 0
    broken = net()
    with torch.no_grad():
        broken.conv1.weight[0] = math.nan
    with pytest.raises(PlanError, match="it contains NaN"):
        MagnitudePruner(broken, sparsity=0.5)


def test_a_schedule_that_leaves_its_range_changes_nothing():
    model = net()
    pruner = MagnitudePruner(model, sparsity=lambda step: 0.5 if step == 0 else 1.5)
    pruner.step()
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    with pytest.raises(PlanError, match=r"sparsity must be a number in \[0, 1\), not 1.5"):
        pruner.step()
    assert all(torch.equal(pruner.masks[name], mask) for name, mask in before.items())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"not the state of this pruner\n  at   load_state_dict\n  why  it has \[\]"),
        ({"steps": -1}, "steps must be an integer of at least 0, not -1"),
        ({"steps": True}, "steps must be an integer of at least 0, not True"),
        (3, "it has int"),
    ],
)
def test_wrong_states_are_refused(state, message):
    pruner = MagnitudePruner(net(), sparsity=0.5)
    with pytest.raises(PlanError, match=message):
        pruner.load_state_dict(state)


def test_squash_refuses_a_mask_among_other_parametrizations():
    layer = nn.Linear(3, 3)
    MagnitudePruner(layer, sparsity=0.5)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(PlanError) as caught:
        squash_masks(layer)
    assert "a masked weight has other parametrizations too" in str(caught.value)
    assert "the mask cannot be taken off alone" in str(caught.value)


def test_a_mask_that_is_no_bool_is_refused():
    with pytest.raises(PlanError, match="a mask must be boolean"):
        WeightMask(torch.ones(3) / 2)
    assert WeightMask(torch.tensor([1, 0])).mask.tolist() == [True, False]
