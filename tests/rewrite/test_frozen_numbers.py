"""Numbers of a graph that count more than widths, as `x.numel()` does: right for other batches too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from tests.support import relative_error

SCALES: dict[str, Callable[[Tensor], Any]] = {
    "numel": lambda y: y.numel(),
    "torch.numel": torch.numel,
    "nelement": lambda y: y.nelement(),
    "product of sizes": lambda y: y.shape[0] * y.shape[1],
    "math.prod": lambda y: math.prod(y.shape),
    "math.prod of size()": lambda y: math.prod(y.size()),
    "root": lambda y: math.sqrt(y.numel()),
    "power": lambda y: y.numel() ** 0.5,
    "sum": lambda y: y.size(0) + y.size(1) / 2,
    "an odd number": lambda y: 3 * y.numel() - 1,
}
KEPT = {"half": list(range(8)), "a third": [0, 5, 9, 10, 15]}


class Scaled(nn.Module):
    def __init__(self, number: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 16), nn.Linear(16, 5)
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(y) / self.number(y)


class Rows(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.c(y.reshape(self.number(y), -1))


def masks(kept: list[int], size: int = 16) -> dict[str, Tensor]:
    return {"a": torch.tensor([i in kept for i in range(size)])}


def batches() -> list[Tensor]:
    return [torch.randn(size, 6, dtype=torch.float64) for size in (3, 2, 7)]


def check(model: nn.Module, kept: list[int]) -> nn.Module:
    small = fxprune.transform(model.eval(), batches()[0], masks=masks(kept), prefer="graph")
    compare(small, model)
    return small


def compare(small: nn.Module, model: nn.Module) -> None:
    masked = fxprune.masked(model, fxprune.record(small).removed)
    for batch in batches():
        assert relative_error(small(batch), masked(batch)) < 1e-12


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("number", SCALES.values(), ids=SCALES)
def test_a_scale_of_batch_and_width_is_right_for_other_batches(number: Any, kept: list[int]) -> None:
    model = Scaled(number).double()
    small: Any = check(model, kept)
    assert small.a.out_features == len(kept)
    compare(fxprune.transform(small, batches()[0], masks=masks([1, 2], len(kept))), small)


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_a_number_of_rows_that_is_computed_from_all_elements_is_right_for_other_batches(kept: list[int]) -> None:
    check(Rows(lambda y: y.numel() // 16).double(), kept)


def test_a_number_of_widths_alone_stays_a_number() -> None:
    small: Any = check(Scaled(lambda y: math.sqrt(y.shape[1])).double(), KEPT["half"])
    assert "/ 4.0" in small.code
    assert "sqrt" not in small.code


def test_an_exported_graph_with_a_dynamic_batch_is_right_for_other_batches() -> None:
    model = Scaled(lambda y: y.numel()).double().eval()
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(model, (batches()[0],), dynamic_shapes=(batch,))
    small = fxprune.transform(program, batches()[0], masks=masks(KEPT["half"]))
    masked = fxprune.masked(model, fxprune.record(small).removed)
    for x in batches():
        assert relative_error(small.module()(x), masked(x)) < 1e-12
