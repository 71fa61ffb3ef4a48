"""Coactivation as an importance: scores by hand, and removal of the least active channels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fxprune
from fxprune.criteria.coactivation import coactivation_importance
from fxprune.criteria.connections import coactivation
from fxprune.errors import InputError, PlanError
from tests.support import randomise


def net():
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(4 * 4 * 4, 5)),
    )
    return randomise(model, 0).double().eval()


def batches(n=3):
    return [torch.randn(2 + i, 3, 8, 8, dtype=torch.float64) for i in range(n)]


def test_scores_are_those_computed_by_hand():
    """The mean over the slots of each weight that a channel has, in every group; rates from a loop over batches."""
    model, data = net(), batches()
    importance = coactivation_importance(model, data)
    rates, counts, applied = {}, {0: 0, 3: 0, 6: 0}, {0: 0, 3: 0, 6: 0}
    for x in data:
        for number, layer in enumerate(model):
            y = layer(x)
            if number in counts:
                counts[number] = counts[number] + coactivation(x, y, layer)
                applied[number] += y.numel() // y.shape[1]
            x = y
    rates = {n: counts[n].double() / applied[n] for n in counts}
    assert set(importance.rates) == {"0.weight", "3.weight", "6.weight"}
    for n, rate in rates.items():
        assert torch.equal(importance.rates[f"{n}.weight"], rate)
        assert 0 < rate.max() <= 1
    along = {
        ("0.weight", 0): rates[0].mean((1, 2, 3)),
        ("3.weight", 0): rates[3].mean((1, 2, 3)),
        ("3.weight", 1): rates[3].mean((0, 2, 3)),
        ("6.weight", 1): rates[6].mean(0),
    }
    groups = fxprune.analyze(model, data[0]).groups
    assert sum(len(group) for group in groups) == 2 + 3 + 2  # blocks, their width before and behind the second one
    for group in groups:
        expected = []
        for channel in range(group.size):
            members = [m for m in group.members if (m.parameter, m.dim) in along]
            parts = [along[m.parameter, m.dim][m.slots[m.index == channel].tolist()].mean() for m in members]
            expected.append(sum(parts) / len(parts))
        torch.testing.assert_close(importance(group), torch.stack(expected))


def test_scores_of_a_chain_follow_the_formula():
    """score[c] = (mean of what makes c + mean of what reads c) / 2, with 4 features per channel after flattening."""
    model = randomise(nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)), 1)
    x = torch.randn(7, 2, 4, 4)
    importance = coactivation_importance(model, x[None])
    y = model[0](x)
    made = coactivation(x, y, model[0]) / (7 * 4)
    read = coactivation(y.relu().flatten(1), model(x), model[3]) / 7
    expected = (made.mean((1, 2, 3)) + read.reshape(3, 5, 4).mean((0, 2))) / 2
    (group,) = fxprune.analyze(model, x).groups
    torch.testing.assert_close(importance(group), expected.double())


def test_the_channels_that_are_never_active_are_removed_first():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([9.0, -9, -9, 9, 9, -9, -9, 9]))
        model[0].weight.mul_(0.1)
    x = torch.randn(4, 3, 8, 8)
    importance = coactivation_importance(model, [(x, "labels")])
    small = fxprune.transform(model, x, ratio=0.5, importance=importance)
    assert fxprune.record(small).removed["0.weight"] == {0: [1, 2, 5, 6]}
    torch.testing.assert_close(small(x), model(x))


def test_shared_weights_are_counted_wherever_they_are_applied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.again = self.first
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.again(self.first(input=x)))

    model, x = Tied(), torch.randn(5, 4)
    importance = coactivation_importance(model, [{"x": x}, {"x": -x}])
    counts = torch.zeros(4, 4, dtype=torch.int64)
    for given in (x, -x):
        for layer in (model.first, model.again, model.second):
            y = layer(given)
            counts += coactivation(given, y, layer)
            given = y
    assert set(importance.rates) == {"first.weight", "again.weight", "second.weight"}
    for rate in importance.rates.values():
        assert torch.equal(rate, counts.double() / 30)


def test_parametrized_weights_and_the_limit_of_batches():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 6)), nn.ReLU(), nn.Linear(6, 2))
    data = [torch.randn(4, 3) for _ in range(3)]
    importance = coactivation_importance(model, iter(data), batches=2)
    assert set(importance.rates) == {"0.parametrizations.weight.original1", "2.weight"}
    counts = sum(coactivation(x, model[0](x), model[0]) for x in data[:2])
    assert torch.equal(importance.rates["0.parametrizations.weight.original1"], counts / 8)
    small = fxprune.transform(model, data[0], ratio=0.5, importance=importance)
    assert small(data[0]).shape == (4, 2)
    assert len(small.get_parameter("2.weight")[0]) == 3


def test_the_model_is_only_read():
    model = net().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def broken():
        yield batches(1)[0]
        raise OSError("no more data")

    coactivation_importance(model, batches())
    with pytest.raises(OSError, match="no more data"):
        coactivation_importance(model, broken())
    assert [m.training for m in model] == [True, False, True, True, True, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_called_with_no_token_counts_nothing():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))

        def forward(self, x):
            return torch.cat([self.experts[0](x), self.experts[1](x[:0])])

    importance = coactivation_importance(Experts(), [torch.randn(5, 3)])
    assert set(importance.rates) == {"experts.0.weight"}


def test_wrong_arguments_are_refused():
    model, data = net(), batches()
    with pytest.raises(PlanError, match="ReLU has no linear layer and no convolution to count in"):
        coactivation_importance(nn.ReLU(), data)
    with pytest.raises(PlanError, match="threshold must be a finite number, not nan"):
        coactivation_importance(model, data, threshold=math.nan)
    for number in (0, True, 1.5):
        with pytest.raises(PlanError, match="batches must be an integer of at least 1, or None"):
            coactivation_importance(model, data, batches=number)
    with pytest.raises(InputError, match="the loader gave no batches"):
        coactivation_importance(model, [])
    for batch in ("text", (), [3]):
        with pytest.raises(InputError, match="a batch holds no input") as error:
            coactivation_importance(model, [data[0], batch])
        assert "at   batch 2" in str(error.value)
    embedded = nn.Sequential(nn.Embedding(10, 6), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 2))
    for name, sentences in (
        (
            "other",
            ("no coactivation was counted for a group", "is the weight of a linear layer or convolution that ran"),
        ),
        ("0", ("counted in another model", 'at   "0.weight"', "there its shape was (2, 6), here it is (10, 6)")),
    ):
        importance = coactivation_importance(nn.Linear(6, 2), [torch.randn(2, 6)])
        importance = type(importance)({f"{name}.weight": importance.rates["weight"]})
        with pytest.raises(PlanError) as error:
            fxprune.transform(embedded, torch.tensor([[1]]), ratio=0.5, importance=importance)
        assert all(sentence in str(error.value) for sentence in sentences)
