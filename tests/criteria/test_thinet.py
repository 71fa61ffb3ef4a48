"""ThiNet: contributions against convolutions of single channels, the greedy order against plain loops and subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.criteria import Contributions, sample_contributions, thinet_importance
from fxprune.criteria import contributions as module_of_contributions
from fxprune.criteria.thinet import removal_order
from fxprune.errors import InputError, PlanError
from tests.support import randomise


def single_channels(layer, x):
    """[rows, out, slots]: what each slot of weight dimension 1 adds to every output, one masked layer at a time."""
    made = []
    for slot in range(layer.weight.shape[1]):
        masked = layer.weight.detach().clone()
        masked[:, torch.arange(layer.weight.shape[1]) != slot] = 0
        made.append(with_weight(layer, masked)(x))
    stacked = torch.stack(made, -1).detach()
    if isinstance(layer, nn.Linear):
        return stacked.reshape(-1, *stacked.shape[-2:])
    channel = 1 if x.ndim == layer.weight.ndim else 0
    return stacked.movedim(channel, -2).reshape(-1, len(layer.weight), stacked.shape[-1])


def with_weight(layer, weight):
    state = type(layer)(**OPTIONS[id(layer)], bias=False).double()
    state.load_state_dict({"weight": weight})
    return state


OPTIONS = {}


def made(kind, **options):
    layer = kind(**options).double()
    OPTIONS[id(layer)] = options
    return layer


LAYERS = {
    "linear": (nn.Linear, {"in_features": 5, "out_features": 3}, (4, 5)),
    "linear of tokens": (nn.Linear, {"in_features": 5, "out_features": 3}, (2, 7, 5)),
    "linear of one": (nn.Linear, {"in_features": 5, "out_features": 3}, (5,)),
    "plain": (nn.Conv2d, {"in_channels": 3, "out_channels": 5, "kernel_size": 3}, (2, 3, 5, 7)),
    "pointwise": (nn.Conv2d, {"in_channels": 3, "out_channels": 5, "kernel_size": 1}, (2, 3, 5, 7)),
    "one image": (nn.Conv2d, {"in_channels": 3, "out_channels": 5, "kernel_size": (2, 3)}, (3, 5, 7)),
    "strided": (
        nn.Conv2d,
        {
            "in_channels": 3,
            "out_channels": 4,
            "kernel_size": (3, 2),
            "stride": (2, 3),
            "padding": (1, 1),
            "dilation": (2, 1),
        },
        (2, 3, 9, 7),
    ),
    "same": (
        nn.Conv2d,
        {"in_channels": 2, "out_channels": 3, "kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)},
        (2, 2, 7, 5),
    ),
    "reflect": (
        nn.Conv2d,
        {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
        (1, 2, 5, 4),
    ),
    "circular": (
        nn.Conv2d,
        {"in_channels": 2, "out_channels": 3, "kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        (1, 2, 5, 4),
    ),
    "grouped": (
        nn.Conv2d,
        {"in_channels": 6, "out_channels": 9, "kernel_size": 3, "groups": 3, "padding": 1},
        (2, 6, 4, 5),
    ),
    "depthwise": (nn.Conv2d, {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "groups": 4}, (2, 4, 4, 5)),
    "one dimension": (
        nn.Conv1d,
        {"in_channels": 3, "out_channels": 4, "kernel_size": 3, "stride": 2, "padding": 1},
        (2, 3, 11),
    ),
    "three dimensions": (
        nn.Conv3d,
        {"in_channels": 2, "out_channels": 3, "kernel_size": (1, 2, 3), "padding": (0, 1, 1)},
        (1, 2, 3, 4, 5),
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("block", [1 << 22, 40])
def test_contributions_are_those_of_single_channels(name, block, monkeypatch):
    monkeypatch.setattr(module_of_contributions, "BLOCK", block)
    kind, options, shape = LAYERS[name]
    layer = made(kind, **options)
    x = torch.randn(shape, dtype=torch.float64)
    reference = single_channels(layer, x)
    found = sample_contributions(nn.Sequential(layer), [x], samples=200).layers["0"]
    assert found.parts.shape == (200 * shape[0], layer.weight.shape[1])
    distance = (found.parts[:, None] - reference[:, found.outputs].movedim(1, 0)).abs().amax(-1)  # [m, rows]
    assert distance.amin(1).max() < 1e-12
    hit = {(o, row) for o, row in zip(found.outputs.tolist(), distance.argmin(1).tolist(), strict=True)}
    everything = reference.shape[0] * reference.shape[1]
    expected = everything * (1 - (1 - 1 / everything) ** len(found.parts))
    assert len(hit) > 0.8 * expected, "outputs are drawn all over the place"
    with_bias = nn.functional.linear(x, layer.weight) if kind is nn.Linear else None
    if with_bias is not None:
        flat = with_bias.reshape(-1, layer.weight.shape[0])
        assert torch.allclose(reference.sum(-1), flat)


def test_a_row_sums_to_the_output_without_the_bias():
    layer = nn.Conv2d(3, 4, 3, padding=1).double()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    found = sample_contributions(nn.Sequential(layer), [x], samples=30).layers["0"]
    outputs = layer(x).detach() - layer.bias.detach()[:, None, None]
    for total, channel in zip(found.parts.sum(1), found.outputs, strict=True):
        assert (outputs[:, channel] - total).abs().min() < 1e-12


def greedy_by_loop(x, drop):
    """The paper's algorithm on samples x [m][c]: try every channel, keep the one that leaves the least error."""
    gone = []
    for _ in range(drop):
        best, least = None, math.inf
        for j in range(len(x[0])):
            if j not in gone:
                error = math.fsum(math.fsum(row[i] for i in [*gone, j]) ** 2 for row in x)
                if error < least:
                    best, least = j, error
        gone.append(best)
    return gone


@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (3, 2), (5, 7), (40, 11), (200, 5)])
def test_the_greedy_order_is_that_of_plain_loops(rows, channels):
    x = np.random.default_rng(rows).normal(0.3, 1.0, (rows, channels))
    assert removal_order(x.T @ x).tolist() == greedy_by_loop(x.tolist(), channels)


def error_of(x, gone):
    return float((x[:, list(gone)].sum(1) ** 2).sum())


def test_the_greedy_choice_is_the_best_subset_where_it_must_be():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = rng.normal(0.0, 1.0, (30, 6))
        order = removal_order(x.T @ x).tolist()
        for drop in range(1, 6):
            best = min(error_of(x, subset) for subset in itertools.combinations(range(6), drop))
            assert error_of(x, order[:drop]) >= best - 1e-9
            if drop == 1:
                assert error_of(x, order[:1]) == pytest.approx(best)
        uncorrelated = np.linalg.qr(x)[0] * rng.uniform(0.5, 2.0, 6)  # without cross terms greedy is optimal
        order = removal_order(uncorrelated.T @ uncorrelated).tolist()
        for drop in range(1, 6):
            best = min(error_of(uncorrelated, subset) for subset in itertools.combinations(range(6), drop))
            assert error_of(uncorrelated, order[:drop]) == pytest.approx(best)


def test_a_gram_matrix_is_not_changed():
    x = np.random.default_rng(0).normal(0.0, 1.0, (9, 4))
    gram = x.T @ x
    before = gram.copy()
    removal_order(gram)
    assert (gram == before).all()


def ranked_by_loop(analysis, group, found):
    """The order for a group from its members: sums over slots and consumers in plain loops."""
    total = [[0.0] * group.size for _ in range(0)]
    for member in group.members:
        path = member.parameter.rpartition(".")[0]
        if member.dim == 1 and member.tensor.ndim > 1 and path in found.layers:
            for row in found.layers[path].parts.tolist():
                sums = [0.0] * group.size
                for channel, slot in zip(member.index, member.slots, strict=True):
                    sums[channel] += row[slot]
                total.append(sums)
    return greedy_by_loop(total, group.size)


class Residual(nn.Module):
    """A stream that two layers write and three read, one of them after flattening."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.conv1 = nn.Conv2d(6, 5, 3, padding=1)
        self.bn = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6 * 9, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.conv2(torch.relu(self.bn(self.conv1(x))))
        return self.head(torch.relu(x).flatten(1))


def grouped():
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU(), nn.Conv2d(12, 3, 3)),
    )


def concatenated():
    class Concatenated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 5, 3, padding=1)
            self.c = nn.Conv2d(9, 3, 3)

        def forward(self, x):
            return self.c(torch.cat([torch.relu(self.a(x)), torch.tanh(self.b(x))], 1))

    return Concatenated()


NETS = {"residual": Residual, "grouped": grouped, "concatenated": concatenated}


def batches(count, *, channels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, channels, 3, 3, dtype=torch.float64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", NETS)
def test_the_importance_of_a_group_adds_slots_and_consumers(name):
    model = randomise(NETS[name]().double().eval(), 0, weights=True)
    importance = thinet_importance(model, batches(3), samples=3)
    analysis = fxprune.analyze(model, batches(1)[0])
    assert len(analysis.groups) >= 2
    for group in analysis.groups:
        scores = importance(group)
        assert sorted(scores.tolist()) == list(range(group.size))
        assert scores.argsort().tolist() == ranked_by_loop(analysis, group, importance.contributions), group
    for ratio in (0.3, 0.6):
        small = fxprune.transform(model, batches(1)[0], ratio=ratio, importance=importance)
        assert fxprune.verify(model, small, batches(1, seed=5)[0]) < 1e-9


def test_the_set_is_the_greedy_one_for_every_ratio():
    model = randomise(concatenated().double().eval(), 1, weights=True)
    importance = thinet_importance(model, batches(3))
    analysis = fxprune.analyze(model, batches(1)[0])
    for group in analysis.groups:
        order = ranked_by_loop(analysis, group, importance.contributions)
        for drop in range(1, group.size):
            plan = analysis.plan(ratio={group.name: drop / group.size}, importance=importance)
            assert plan.removed[f"{group.name}.weight"][0] == sorted(order[:drop])


def test_channels_that_the_next_layer_cannot_see_are_removed_first():
    """Large filters whose consumer weights are tiny: the l1 norm keeps them, ThiNet does not."""
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 1)).double().eval()
    with torch.no_grad():
        model[0].weight[:3] *= 10
        model[2].weight[:, :3] *= 1e-3
    analysis = fxprune.analyze(model, torch.randn(1, 2, 5, 5, dtype=torch.float64))
    loader = [torch.randn(16, 2, 5, 5, dtype=torch.float64)]
    assert analysis.plan(ratio=0.5, importance=thinet_importance(model, loader)).removed["0.weight"] == {0: [0, 1, 2]}
    assert analysis.plan(ratio=0.5, importance="l1").removed["0.weight"] == {0: [3, 4, 5]}


def test_same_seed_same_samples_and_another_seed_others():
    model = Residual().double()
    first, again, other = (sample_contributions(model, batches(2), seed=s).layers["head"] for s in (1, 1, 2))
    assert torch.equal(first.parts, again.parts)
    assert not torch.equal(first.outputs, other.outputs)


def test_sampling_leaves_the_model_as_it_was():
    model = Residual().double().train()
    model.bn.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    thinet_importance(model, batches(2))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(InputError):
        thinet_importance(model, [*batches(1), *batches(1, channels=3)])
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_batches_may_be_tuples_or_dicts_and_layers_shared():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x, y):
            return self.b(torch.relu(self.a(x))) + self.b(torch.relu(self.a(y)))

    model = Twice()
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    for batch in ((x, y), [x, y], {"x": x, "y": y}):
        found = sample_contributions(model, iter([batch]), samples=2)
        assert {name: len(layer.parts) for name, layer in found.layers.items()} == {"a": 20, "b": 20}


def test_fused_transformer_layers_are_seen():
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).double().eval()
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    found = sample_contributions(model, [x])
    assert set(found.layers) == {"linear1", "linear2", "self_attn.in_proj_weight", "self_attn.out_proj"}
    analysis = fxprune.analyze(model, x)
    group = next(g for g in analysis.groups if g.name == "linear1")
    scores = thinet_importance(model, [x])(group)
    assert sorted(scores.tolist()) == list(range(12))


def half_samples(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    return sample_contributions(model, [torch.randn(9, 6).to(dtype)]).layers["2"].parts


def test_half_precision_is_summed_in_float32():
    assert half_samples(torch.bfloat16).dtype == torch.float32
    assert half_samples(torch.float64).dtype == torch.float64


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.head_dim, self.width = 4, 16

    def forward(self, x):
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (t.view(shape).transpose(1, 2) for t in self.qkv(x).split(self.width, -1))
        return x + self.proj((((q @ k.mT) * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_group_that_no_layer_reads_is_refused():
    model, x = Attention().double().eval(), torch.randn(2, 5, 16, dtype=torch.float64)
    importance = thinet_importance(model, [x])
    with pytest.raises(PlanError) as caught:
        fxprune.transform(model, x, ratio=0.5, importance=importance)
    text = str(caught.value)
    assert 'ThiNet cannot rank group "qkv" (head width)' in text
    assert "no convolution or linear layer was seen reading its channels" in text
    assert "ignore it, or give the ratio as" in text
    heads = fxprune.analyze(model, x).plan(ratio={"*:heads": 0.5}, importance=importance)
    assert len(heads.removed["proj.weight"][1]) == 8


class OwnAttention(nn.Module):
    """Attention of torch, whose projections are multiplied by a function, and a matrix that forward reads itself."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.first, self.head = nn.Linear(16, 16), nn.Parameter(torch.randn(3, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)

    def forward(self, x):
        x = self.first(x)
        return nn.functional.linear(self.attention(x, x, x, need_weights=False)[0].mean(1), self.head)


@pytest.mark.parametrize("batch_first", [True, False])
def test_matrices_that_no_layer_multiplies_are_sampled(batch_first):
    model, x = OwnAttention(batch_first).double().eval(), torch.randn(9, 5, 16, dtype=torch.float64)
    importance = thinet_importance(model, [x], samples=4)
    groups = fxprune.analyze(model, x).groups
    assert sorted(group.kind for group in groups) == ["channels", "channels", "head width", "heads"]
    for group in groups:
        assert sorted(importance(group).tolist()) == list(range(group.size))
    found = importance.contributions.layers
    assert list(found) == ["first", "attention.out_proj", "attention.in_proj_weight", "head"]
    if batch_first:  # the rows of one sample, whatever batch it is in
        other = thinet_importance(model, x.split([2, 6, 1]), samples=4)
        assert all(torch.equal(importance(group), other(group)) for group in groups)
        hidden = model.first(x)
        expected = nn.functional.linear(hidden, model.attention.in_proj_weight).flatten(0, 1).detach()
        made = found["attention.in_proj_weight"]
        distance = (expected[:, made.outputs] - made.parts.sum(1)).abs().min(0).values
        assert distance.max() < 1e-12


def test_the_head_that_adds_least_goes_first():
    model, x = OwnAttention().double().eval(), torch.randn(9, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        model.attention.out_proj.weight[:, 4:8] *= 1e-3
        model.attention.in_proj_bias[32 + 4 : 32 + 8] = 0
    plan = fxprune.analyze(model, x).plan(ratio={"*:heads": 0.25}, importance=thinet_importance(model, [x]))
    assert plan.removed["attention.out_proj.weight"][1] == [4, 5, 6, 7]


def test_readers_that_cannot_be_sampled_are_named():
    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.up, self.side = nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 3, 2), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            x = self.first(x)
            return self.up(x).mean((2, 3)), self.side(x)

    model, x = Up().double().eval(), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    analysis = fxprune.analyze(model, x)
    with pytest.warns(UserWarning, match='ThiNet ranks group "first" without "up.weight", which read it too'):
        analysis.plan(ratio=0.5, importance=thinet_importance(model, [x]))
    alone = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 3, 2)).double().eval()
    with pytest.raises(PlanError, match=r'reading its channels; "1.weight" cannot be sampled'):
        fxprune.analyze(alone, x).plan(ratio=0.5, importance=thinet_importance(alone, [x]))


def test_another_model_is_refused():
    model, other = Residual().double().eval(), Residual().double().eval()
    with pytest.raises(PlanError) as caught:
        fxprune.transform(other, batches(1)[0], ratio=0.5, importance=thinet_importance(model, batches(1)))
    assert "this ThiNet importance was made from another model" in str(caught.value)
    assert 'at   "stem.weight"' in str(caught.value)


REFUSED = [
    (torch.randn(3, 2, 3, 3), {}, InputError, "loader must give batches, not be a Tensor"),
    ({"x": 1}, {}, InputError, "loader must give batches, not be a dict"),
    (3, {}, InputError, "loader must give batches, not be a int"),
    ([], {}, InputError, "loader gave no batch"),
    ([None], {}, InputError, "example inputs are missing"),
    ([(torch.ones(1), torch.ones(1))], {}, InputError, "a batch of the loader does not fit the model"),
    ([torch.ones(1)], {"samples": 0}, PlanError, "samples must be an integer of at least 1, not 0"),
    ([torch.ones(1)], {"samples": 1.5}, PlanError, "samples must be an integer of at least 1, not 1.5"),
    ([torch.ones(1)], {"seed": -1}, PlanError, "seed must be an integer of at least 0, not -1"),
]


@pytest.mark.parametrize(("loader", "options", "kind", "message"), REFUSED, ids=[r[3][:40] for r in REFUSED])
def test_wrong_arguments_are_refused(loader, options, kind, message):
    with pytest.raises(kind) as caught:
        thinet_importance(Residual().double(), loader, **options)
    assert message in str(caught.value)


def test_pairs_of_images_and_labels_get_a_hint():
    with pytest.raises(InputError, match=r"give what one call of the model takes, for example `\(x for x, _ in load"):
        sample_contributions(Residual().double(), [(batches(1)[0], torch.zeros(8))])


def test_not_a_model_is_refused():
    with pytest.raises(PlanError, match="not a model"):
        sample_contributions(3, batches(1))
    assert isinstance(sample_contributions(Residual().double(), batches(1)), Contributions)
