"""The state of a small model is that of the original: names, order, flags, ties, kinds of parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fxprune
from tests.support import randomise, relative_error


class Tagged(nn.Parameter):
    """A parameter of a class of the user."""


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


class Sizes:
    __slots__ = ("note", "width")

    def __init__(self, width):
        self.width, self.note = width, "kept"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.sizes = Sizes(8)
        self.first = nn.Linear(4, 8)
        self.listed = nn.ParameterList([Tagged(torch.rand(8)), nn.Parameter(torch.rand(8))])
        self.by_name = nn.ParameterDict({"shift": torch.rand(8), "scale": torch.rand(8)})
        self.norm = nn.BatchNorm1d(8)
        self.register_buffer("offset", torch.rand(8), persistent=False)
        self.register_buffer("gain", torch.rand(8))
        self.register_buffer("none", None)
        self.register_parameter("absent", None)
        self.second = parametrize.register_parametrization(nn.Linear(8, 8), "weight", Twice())
        self.third, self.last = nn.Linear(8, 8), nn.Linear(8, 2)
        self.third.bias = self.second.bias
        self.first.weight.requires_grad_(False)
        self.listed[0].no_weight_decay = True

    def forward(self, x):
        h = self.first(x) * self.listed[0] + self.listed[1] * self.by_name["scale"] + self.by_name["shift"]
        h = torch.relu(self.norm(h) * self.gain + self.offset)
        return self.last(torch.relu(self.second(h) + self.third(h)).view(-1, self.last.in_features))


@pytest.fixture
def pair():
    net, x = Net().double().eval(), torch.randn(3, 4).double()
    net(x).sum().backward()
    return net, fxprune.transform(net, x, ratio=0.5, path="eager"), x


def test_names_order_and_versions_of_the_state_are_the_same(pair):
    net, small, x = pair
    assert relative_error(small(x), fxprune.masked(net, fxprune.record(small).removed)(x)) < 1e-12
    mine, theirs = small.state_dict(), net.state_dict()
    assert list(mine) == list(theirs)
    assert mine._metadata == theirs._metadata
    for kind in ("named_parameters", "named_buffers", "named_modules"):
        assert [n for n, _ in getattr(small, kind)()] == [n for n, _ in getattr(net, kind)()]
    assert small.absent is None
    assert small.none is None


def test_flags_ties_and_attributes_of_parameters_are_the_same(pair):
    net, small, _ = pair
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in net.parameters()]
    assert [type(p) for p in small.parameters()] == [type(p) for p in net.parameters()]
    assert small.listed[0].no_weight_decay
    assert all(p.grad is None for p in small.parameters())
    assert small.third.bias is small.second.bias
    assert small.offset.shape == (4,)
    assert "offset" not in small.state_dict()


def test_parametrized_layers_and_objects_with_slots_are_kept(pair):
    _, small, _ = pair
    assert parametrize.is_parametrized(small.second, "weight")
    assert torch.equal(small.second.weight, 2 * small.second.parametrizations.weight.original)
    assert small.sizes.note == "kept"
    parametrize.remove_parametrizations(small.second, "weight")
    assert isinstance(small.second.weight, nn.Parameter)


def test_the_state_loads_into_a_copy_and_trains_on(pair):
    _, small, x = pair
    small.load_state_dict(small.state_dict())
    optimizer = torch.optim.SGD([p for p in small.parameters() if p.requires_grad], lr=0.1)
    before = small.train()(x).square().mean()
    before.backward()
    optimizer.step()
    assert small(x).square().mean() < before


class TiesInForward(nn.Module):
    """The head gets the weight of the embedding in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.head.weight = self.words.weight
        found = self.words(x)
        return self.head(self.mix(found).relu() * found)


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "after a run"])
def test_weights_that_forward_ties_stay_tied(ran: bool) -> None:
    net, x = randomise(TiesInForward().double().eval(), 0), torch.arange(6).view(2, 3)
    if ran:
        net(x)
    small: Any = fxprune.transform(net, x, ratio=0.5)
    record = fxprune.record(small)
    assert (type(small), record.error) == (TiesInForward, 0.0)
    assert small.words.weight.shape == (20, 8)
    assert torch.allclose(small(x), fxprune.masked(net, record.removed)(x), rtol=0, atol=1e-12)
    assert small.head.weight is small.words.weight
