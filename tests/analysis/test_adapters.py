"""The rank of low-rank adapters: how it is found, that a plain ratio leaves it, and that a pattern prunes it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import fxprune
from fxprune.analysis.adapters import low_rank_adapters
from tests.support import randomise


class Peft(nn.Module):
    """An adapter as peft writes it."""

    def __init__(self, base: nn.Module, down: nn.Module, up: nn.Module, dropout: float = 0.1) -> None:
        super().__init__()
        self.base_layer, self.lora_dropout = base, nn.Dropout(dropout)
        self.lora_A, self.lora_B = nn.ModuleDict({"default": down}), nn.ModuleDict({"default": up})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.base_layer(x)
        x = x.to(self.lora_A["default"].weight.dtype)
        return made + self.lora_B["default"](self.lora_A["default"](self.lora_dropout(x))) * 2.0


class Beside(nn.Module):
    """Two layers beside one that they may be an adapter of; nothing is told by names."""

    def __init__(self, base, first, second, between=None, other=None):
        super().__init__()
        self.base, self.first, self.second = base, first, second
        self.between, self.other = between or nn.Identity(), other or nn.Identity()

    def forward(self, x):
        return self.base(x) + 0.5 * self.second(self.between(self.first(self.other(x))))


class Parameters(nn.Module):
    """An adapter as loralib writes it, with other names."""

    def __init__(self, columns, rows, rank=4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns))
        self.down, self.up = nn.Parameter(torch.randn(columns, rank)), nn.Parameter(torch.randn(rank, rows))

    def forward(self, x):
        return F.linear(x, self.weight) + (x @ self.down @ self.up) * 0.5


class Two(nn.Module):
    """Two adapters of one layer."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(12, 20)
        self.a, self.b = nn.Linear(12, 4, bias=False), nn.Linear(4, 20, bias=False)
        self.c, self.d = nn.Linear(12, 6, bias=False), nn.Linear(6, 20, bias=False)

    def forward(self, x):
        return self.d(self.c(x)) + (self.b(self.a(x)) + self.base(x))


class Product(nn.Module):
    def __init__(self, columns, rows, rank=4):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(rank, columns)), nn.Parameter(torch.randn(rows, rank))

    def forward(self, weight):
        return weight + self.second @ self.first


def parametrized(columns, rows):
    layer = nn.Linear(columns, rows)
    parametrize.register_parametrization(layer, "weight", Product(columns, rows))
    return layer


def linear(columns, rows, *, bias=False):
    return nn.Linear(columns, rows, bias=bias)


def peft(columns=12, rows=20, rank=4):
    return Peft(nn.Linear(columns, rows), linear(columns, rank), linear(rank, rows))


def beside(**parts):
    given = {"base": nn.Linear(12, 20), "first": linear(12, 4), "second": linear(4, 20), **parts}
    return Beside(**given)


def stack(layer, rows=20):
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), layer, nn.ReLU(), nn.Linear(rows, 3)).eval()


X = torch.randn(2, 7, 5)

ADAPTERS = {
    "peft": (lambda: stack(peft()), ["2.lora_A.default"]),
    "other names": (lambda: stack(beside()), ["2.first"]),
    "bias behind it": (lambda: stack(beside(second=linear(4, 20, bias=True))), ["2.first"]),
    "parameters": (lambda: stack(Parameters(12, 20)), ["2.down"]),
    "two": (lambda: stack(Two()), ["2.a", "2.c"]),
    "parametrized": (lambda: stack(parametrized(12, 20)), ["2.parametrizations.weight.0.first"]),
}

OTHERS = {
    "a function between": beside(between=nn.ReLU()),
    "a bias between": beside(first=linear(12, 4, bias=True)),
    "a norm between": beside(between=nn.LayerNorm(4)),
    "wider than the input": beside(first=linear(12, 14), second=linear(14, 20)),
    "another input": beside(other=nn.Tanh()),
    "no layer beside it": beside(base=nn.Linear(12, 20), first=nn.Sequential(linear(12, 12), nn.ReLU(), linear(12, 4))),
    "nothing added": nn.Sequential(linear(12, 4), linear(4, 20)),
}


@pytest.mark.parametrize("path", ["eager", "fx", "export"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_rank_is_found(name, path):
    make, expected = ADAPTERS[name]
    for training in (False, True):
        analysis = fxprune.analyze(make().train(training), X, path=path)
        found = low_rank_adapters(analysis)
        assert sorted(analysis.groups[number].name for number in found) == expected


def test_a_rank_of_convolutions_is_found():
    layer = Beside(nn.Conv2d(6, 20, 3), nn.Conv2d(6, 4, 3, bias=False), nn.Conv2d(4, 20, 1, bias=False))
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(20, 2, 1))
    analysis = fxprune.analyze(net, torch.randn(1, 3, 8, 8))
    assert [analysis.groups[number].name for number in low_rank_adapters(analysis)] == ["2.first"]


@pytest.mark.parametrize("name", OTHERS)
def test_another_narrow_pair_is_no_adapter(name):
    analysis = fxprune.analyze(stack(OTHERS[name]), X)
    assert low_rank_adapters(analysis) == frozenset()
    small = fxprune.transform(stack(OTHERS[name]), X, ratio=0.5)
    assert not [reason for reason in fxprune.record(small).reasons if "adapter" in reason]


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_plain_ratio_leaves_the_rank_and_cuts_the_outer_widths(name):
    make, names = ADAPTERS[name]
    model = randomise(make(), 1)
    analysis = fxprune.analyze(model, X)
    ranks = {(m.parameter, m.dim) for g in analysis.groups if g.name in names for m in g.members}
    small = fxprune.transform(model, X, ratio=0.5)
    removed = fxprune.record(small).removed
    assert not [place for place in ranks if place[1] in removed.get(place[0], {})]
    assert {(name, 1 - dim) for name, dim in ranks} <= {(n, dim) for n, dims in removed.items() for dim in dims}
    listed = ", ".join(f'"{name}"' for name in names)
    why = "a plain ratio does not prune it, a pattern does, such as"
    [reason] = [reason for reason in fxprune.record(small).reasons if "low-rank" in reason]
    assert reason == f'low-rank adapters keep their rank ({listed}): {why} ratio={{"{names[0]}": 0.5}}'
    assert fxprune.record(small).error <= 1e-9


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_pattern_prunes_the_rank(name):
    make, names = ADAPTERS[name]
    model = randomise(make(), 1)
    for ratio in ({names[0]: 0.5}, {"*": 0.5}):
        small = fxprune.transform(model, X, ratio=ratio)
        weight = next(m for g in fxprune.analyze(model, X).groups if g.name == names[0] for m in g.members)
        assert fxprune.record(small).after[weight.parameter][weight.dim] == 2
        assert fxprune.record(small).error <= 1e-9


def test_where_only_ranks_could_go_the_reason_says_so():
    model = peft(columns=5).eval()
    with pytest.warns(fxprune.NothingRemovedWarning, match=r'low-rank adapters keep.*ratio=\{"lora_A.default": 0.5\}'):
        fxprune.transform(model, X, ratio=0.5)
    ignored = fxprune.transform(stack(peft()), X, ratio=0.5, ignore="2.lora_A")
    assert not [reason for reason in fxprune.record(ignored).reasons if "low-rank" in reason]


def test_a_count_and_a_budget_treat_the_rank_as_a_ratio_does():
    model = randomise(stack(peft()), 1)
    plan = fxprune.analyze(model, X).plan(ratio=0.5, counts={"2.lora_A.default": 3})
    assert plan.removed["2.lora_A.default.weight"][0]
    assert not [reason for reason in plan.reasons if "low-rank" in reason]
    plan = fxprune.analyze(model, X).plan(keep={"params": 0.5})
    assert 0 not in plan.removed.get("2.lora_A.default.weight", {})
    assert [reason for reason in plan.reasons if "low-rank" in reason]


def test_many_adapters_are_one_reason():
    model = nn.Sequential(*(peft(8, 8) for _ in range(5))).eval()
    plan = fxprune.analyze(model, torch.randn(2, 8)).plan(ratio=0.5)
    [reason] = [reason for reason in plan.reasons if "low-rank" in reason]
    assert '"2.lora_A.default", ... 2 more' in reason


def test_a_long_sum_is_looked_through_in_part():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(beside(base=linear(12, 12), second=linear(4, 12)) for _ in range(40))

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    assert len(low_rank_adapters(fxprune.analyze(Deep(), torch.randn(2, 12)))) == 40
