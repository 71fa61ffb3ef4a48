"""Models whose functions have a cache, and that ran before: the smaller model is settled as the original was walked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from tests.support import randomise

X = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@functools.lru_cache(maxsize=4)
def positions(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float64).view(-1, 1) * 0.5


def cached(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function around one with a cache, as libraries write it."""
    inner = functools.lru_cache(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return inner(*args)

    return call


@cached
def wrapped_positions(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float64).view(-1, 1) * 0.5


class Positions(nn.Module):
    """Adds a table of positions; the operations that follow have the names of those that make the table."""

    def __init__(self, table: Callable[[int], torch.Tensor]) -> None:
        super().__init__()
        self.table = table
        self.first = nn.Linear(7, 12)
        self.last = nn.Linear(12, 5)
        self.heads = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = self.table(x.shape[1])
        hidden = (self.first(x) * 2.0).view(*x.shape[:2], self.heads, -1).relu().flatten(2)
        return self.last(hidden * 0.25 + table)


class WithMethod(Positions):
    """The same, with the cache on a method of one object."""

    def __init__(self) -> None:
        super().__init__(positions)
        self.positions = functools.lru_cache(self._positions)

    def _positions(self, count: int) -> torch.Tensor:
        return torch.arange(count, dtype=torch.float64).view(-1, 1) * 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.table = self.positions
        return super().forward(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a function": lambda: Positions(lambda count: positions(count)),
    "a function around one with a cache": lambda: Positions(lambda count: wrapped_positions(count)),
    "a method": WithMethod,
}


@pytest.fixture
def _cold() -> Iterator[None]:
    positions.cache_clear()
    yield
    positions.cache_clear()


@pytest.mark.usefixtures("_cold")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("warm", [False, True])
def test_a_model_that_ran_before_keeps_its_class(name: str, warm: bool) -> None:
    model = randomise(MODELS[name]().double().eval(), 0)
    if warm:
        model(X)
    small = fxprune.transform(model, X, ratio=0.4, path="eager")
    assert type(small) is type(model)
    assert small.first.out_features < 12
    reference = fxprune.masked(model, fxprune.record(small).removed)(X)
    torch.testing.assert_close(small(X), reference, rtol=1e-12, atol=1e-12)
