"""Seeds and generators of forward's own: a graph does not lose them, and no run moves the original's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

GENERATOR = torch.Generator()


def seeds(y: Tensor) -> Tensor:
    torch.manual_seed(0)
    return y + torch.rand_like(y)


def seeds_the_generator(y: Tensor) -> Tensor:
    torch.default_generator.manual_seed(0)
    return y + torch.rand_like(y)


def forks(y: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return y + torch.rand_like(y)


class Draws(nn.Module):
    """Its width is written in forward, so that only a graph can lose its channels."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.draw = nn.Linear(5, 8), nn.Linear(8, 3), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.draw(self.last(self.first(x).relu().view(-1, 8)))


SAYS = "forward sets the state of torch's random numbers"


@pytest.mark.parametrize("draw", [seeds, seeds_the_generator, forks])
def test_a_traced_graph_is_refused_and_an_exported_one_says_what_it_loses(draw: Callable[[Tensor], Tensor]) -> None:
    net, x = Draws(draw).eval(), torch.randn(3, 5)
    state = torch.get_rng_state()
    with pytest.raises(fxprune.CaptureError, match=f"its {SAYS}"):
        fxprune.transform(net, x, ratio=0.5, path="fx")
    with pytest.warns(fxprune.ClassLostWarning, match=SAYS):
        small = fxprune.transform(net, x, ratio=0.5, prefer="graph")
    assert torch.equal(torch.get_rng_state(), state)
    made = fxprune.record(small)
    (reason,) = [reason for reason in made.reasons if SAYS in reason]
    assert SAYS in made.why_not["fx"]
    known = draw is not seeds_the_generator
    assert ("test_seeds.py:" in reason, "test_seeds.py:" in made.why_not["fx"]) == (known, known)


def test_a_graph_that_only_draws_says_nothing_of_seeds() -> None:
    net = Draws(lambda y: y + torch.rand_like(y)).eval()
    for path in ("fx", "export"):
        assert fxprune.record(fxprune.transform(net, torch.randn(3, 5), ratio=0.5, path=path)).reasons == ()


class Holds(nn.Module):
    def __init__(self, decides: bool) -> None:
        super().__init__()
        self.first, self.last, self.decides = nn.Linear(5, 8), nn.Linear(8, 3), decides
        self.generator = torch.Generator().manual_seed(1)
        self.all = [self.generator]

    def forward(self, x: Tensor) -> Tensor:
        assert self.all[0] is self.generator
        y: Tensor = self.last(self.first(x).relu()) + torch.rand(3, generator=self.generator)
        y = y + torch.rand(3, generator=GENERATOR)
        return -y if self.decides and y.sum() > 0 else y


@pytest.mark.parametrize("decides", [False, True])
@pytest.mark.parametrize("prefer", [{}, {"prefer": "graph"}, {"path": "hooks"}])
def test_generators_stay_where_they_are_and_the_small_model_begins_there(decides: bool, prefer: Any) -> None:
    net, x = Holds(decides).eval(), torch.randn(3, 5)
    GENERATOR.manual_seed(2)
    states = net.generator.get_state(), GENERATOR.get_state()
    small: Any = fxprune.transform(net, x, ratio=0.5, **prefer)
    fxprune.verify(net, small, x)
    assert torch.equal(net.generator.get_state(), states[0])
    assert torch.equal(GENERATOR.get_state(), states[1])
    if isinstance(small, Holds):
        assert small.generator is not net.generator
        assert torch.equal(small.generator.get_state(), states[0])
        first = small(x), net(x)
        GENERATOR.set_state(states[1])
        small.generator.set_state(states[0])
        assert torch.equal(small(x), first[0])


def test_a_trace_leaves_the_generators_of_a_file() -> None:
    state = GENERATOR.get_state()
    fxprune.trace(nn.Sequential(nn.Linear(5, 5), Holds(False)), torch.randn(3, 5))
    assert torch.equal(GENERATOR.get_state(), state)
