"""Random numbers that forward draws by a seed of its own."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


def by_a_generator(h: Tensor) -> Tensor:
    return h + torch.randn(h.shape[1], generator=torch.Generator().manual_seed(3), dtype=h.dtype)


def in_place(h: Tensor) -> Tensor:
    return h * torch.empty_like(h).uniform_(generator=torch.Generator().manual_seed(3))


def by_a_seed(h: Tensor) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return h + torch.rand_like(h)


def unseeded(h: Tensor) -> Tensor:
    return h + 0 * torch.randn(h.shape[1], dtype=h.dtype)


class Noisy(nn.Module):
    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.second(self.noise(self.first(x))).relu())
        return made


def by_a_seed_that_stays(h: Tensor) -> Tensor:
    torch.manual_seed(4)
    return h + torch.rand_like(h)


@pytest.mark.parametrize("noise", [by_a_generator, in_place, by_a_seed, by_a_seed_that_stays])
@pytest.mark.parametrize("before", ["another seed", "this seed"])
def test_the_channels_of_seeded_numbers_stay(noise: Callable[[Tensor], Tensor], before: str) -> None:
    torch.manual_seed(0)
    net, x = Noisy(noise).double().eval(), torch.randn(3, 4).double()
    torch.manual_seed(4 if before == "this seed" else 5)
    state = torch.get_rng_state()
    small: Any = fxprune.transform(net, x, ratio=0.5, prefer="class")
    assert torch.equal(torch.get_rng_state(), state)
    assert small.first.out_features == 8
    assert small.second.out_features == 3
    made = fxprune.record(small)
    assert torch.allclose(small(x), fxprune.masked(net, made.removed)(x), atol=1e-12)
    (row,) = [line for line in fxprune.analyze(net, x).report().splitlines() if "forward seeds these random" in line]
    assert "first.weight[0]" in row


def test_the_channels_of_other_random_numbers_go() -> None:
    torch.manual_seed(0)
    net, x = Noisy(unseeded).double().eval(), torch.randn(3, 4).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small: Any = fxprune.transform(net, x, ratio=0.5, prefer="class")
    assert small.first.out_features == 4


class SeedsByAWidth(nn.Module):
    def __init__(self, generator: bool, seed: Callable[[Any], int], decides: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(5, 2)
        self.generator, self.seed, self.decides = generator, seed, decides

    def forward(self, x: Tensor) -> Tensor:
        made = None
        if self.generator:
            made = torch.Generator().manual_seed(self.seed(self))
        else:
            torch.manual_seed(self.seed(self))
        y: Tensor = self.last(self.second(self.first(x)).relu()) * torch.rand(len(x), 1, generator=made, dtype=x.dtype)
        return -y if self.decides and y.sum() > 0 else y


@pytest.mark.parametrize("generator", [True, False])
@pytest.mark.parametrize("decides", [True, False])
@pytest.mark.parametrize(
    "seed", [lambda net: net.first.out_features, lambda net: net.first.weight.shape[0] + 7], ids=["width", "sum"]
)
def test_a_width_that_a_seed_is_made_of_stays(generator: bool, decides: bool, seed: Callable[[Any], int]) -> None:
    torch.manual_seed(0)
    net, x = SeedsByAWidth(generator, seed, decides).double().eval(), torch.randn(3, 4).double()
    small: Any = fxprune.transform(net, x, ratio=0.5, prefer="class")
    made = fxprune.record(small)
    assert (small.first.out_features, small.second.out_features) == (8, 3)
    assert any("rand draws by the seed" in reason for reason in made.reasons)
    assert torch.allclose(small(x), fxprune.masked(net, made.removed)(x), atol=1e-12)
    if made.path == "eager":
        with pytest.raises(fxprune.RewriteError, match="forward makes a seed of a width") as caught:
            fxprune.transform(net, x, plan=fxprune.analyze(net, x).plan(ratio=0.5), path="eager")
        assert "write the seed as a number" in str(caught.value)


def test_a_seed_of_chance_holds_nothing() -> None:
    net, x = SeedsByAWidth(False, lambda net: torch.seed(), decides=False).double().eval(), torch.randn(3, 4).double()
    small: Any = fxprune.transform(net, x, ratio=0.5, prefer="class")
    assert (small.first.out_features, small.second.out_features) == (4, 3)


@pytest.mark.filterwarnings("ignore::fxprune.NothingRemovedWarning")
@pytest.mark.parametrize("decides", [True, False])
def test_a_seed_of_another_formula_holds_all_widths(decides: bool) -> None:
    torch.manual_seed(0)
    net = SeedsByAWidth(True, lambda net: net.first.out_features**3 % 5, decides).double().eval()
    small: Any = fxprune.transform(net, torch.randn(3, 4).double(), ratio=0.5, path="eager", verify=False)
    assert (small.first.out_features, small.second.out_features) == (8, 5)
    assert any("rand draws by the seed " in reason for reason in fxprune.record(small).reasons)


class BehindHooks(nn.Module):
    def __init__(self, number: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.third, self.number = nn.Linear(6, 6), number

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x).relu())
        made: Tensor = self.last((h + self.third(h)) * self.number(self))
        return made


def by_the_seed(net: Any, seed: int, size: int = 1) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sum()


def by_the_seed_of_torch(net: Any) -> Tensor:
    torch.manual_seed(net.second.weight.numel())
    return torch.rand(1, dtype=torch.float64)


SEEDS_OF_A_WIDTH = {
    "a product": lambda net: by_the_seed(net, net.second.weight.numel()),
    "the seed of torch": by_the_seed_of_torch,
    "a remainder": lambda net: by_the_seed(net, net.second.weight.numel() % 7),
    "as many numbers": lambda net: by_the_seed(net, 3, net.second.weight.shape[0]),
    "behind a draw of none": lambda net: torch.randperm(3)[0] * 0 + by_the_seed(net, net.second.weight.numel()),
}


@pytest.mark.parametrize("number", SEEDS_OF_A_WIDTH.values(), ids=SEEDS_OF_A_WIDTH)
@pytest.mark.parametrize("verify", [True, False])
def test_seeds_of_widths_behind_hooks_hold_channels(number: Callable[[Any], Any], verify: bool) -> None:
    torch.manual_seed(0)
    net, x = BehindHooks(number).double().eval(), torch.randn(3, 4).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.NothingRemovedWarning)
        small: Any = fxprune.transform(net, x, ratio=0.5, path="hooks", verify=verify)
    made = fxprune.record(small)
    assert small.second.out_features == 6
    assert torch.allclose(small(x), fxprune.masked(net, made.removed)(x), atol=1e-12)
    assert any("draws" in reason and "before slots went" in reason for reason in made.reasons)
    plan = fxprune.analyze(net, x, path="hooks").plan(ratio=0.5)
    with pytest.raises(
        fxprune.RewriteError, match=r"forward (makes a seed of a width|seeds numbers of a shape)"
    ) as caught:
        fxprune.transform(net, x, plan=plan, path="hooks")
    assert "test_seeded_draws.py:" in str(caught.value)


CLOCK = itertools.count()

SEEDS_OF_NO_WIDTH = {
    "a number": lambda net: by_the_seed(net, 3),
    "a clock": lambda net: by_the_seed(net, next(CLOCK)),
    "a slow clock": lambda net: by_the_seed(net, next(CLOCK) // 2),
    "no seed": lambda net: 1 + 0 * torch.randn(net.second.weight.shape[0], dtype=torch.float64).sum(),
    "no seed, and none in the proof": lambda net: 1 + 0 * (torch.randperm(3)[0] + torch.rand(len(net.second.bias))[0]),
}


@pytest.mark.parametrize("number", SEEDS_OF_NO_WIDTH.values(), ids=SEEDS_OF_NO_WIDTH)
def test_other_seeds_behind_hooks_hold_nothing(number: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    net, x = BehindHooks(number).double().eval(), torch.randn(3, 4).double()
    small: Any = fxprune.transform(net, x, ratio=0.5, path="hooks")
    assert (small.first.out_features, small.second.out_features, small.third.out_features) == (4, 3, 3)
    assert not fxprune.record(small).reasons
