"""The error of the small model against its reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fxprune
from fxprune import _attempt
from fxprune._attempt import UnprovenError
from fxprune.errors import VerificationError
from fxprune.fold import resolve_plan
from fxprune.proof.compare import first_wrong_group, prove
from fxprune.proof.deterministic import deterministic
from fxprune.proof.difference import relative_error
from fxprune.proof.result import NoReferenceError

NAN = torch.tensor([1.0, math.nan])
FINE = torch.tensor([1.0, 2.0])


INFINITE = torch.tensor([1.0, math.inf])
COMPLEX = torch.tensor([1 + 1j, complex(2, math.nan)])


@pytest.mark.parametrize("other", [[FINE, FINE], [NAN, FINE], [FINE, NAN], [NAN, INFINITE], [-INFINITE, NAN]])
@pytest.mark.parametrize("one", [[NAN, NAN], [INFINITE, NAN], [COMPLEX, NAN]])
def test_a_number_that_is_not_finite_in_one_of_them_is_an_error(one: list[Tensor], other: list[Tensor]) -> None:
    """NaN counts wherever it stands; a plain maximum of 0.0 and NaN would be 0.0."""
    assert relative_error(one, other) == math.inf
    assert relative_error(other, one) == math.inf


@pytest.mark.parametrize("same", [NAN, INFINITE, -INFINITE, COMPLEX, torch.full((2,), math.nan)])
def test_equal_infinities_and_nan_at_equal_places_are_equal(same: Tensor) -> None:
    assert relative_error([same, FINE], [same.clone(), FINE]) == 0.0


def test_the_numbers_beside_infinities_are_compared() -> None:
    assert relative_error(torch.tensor([3.0, -math.inf]), torch.tensor([2.0, -math.inf])) == 0.5
    assert relative_error(torch.tensor([2.0, math.inf]), torch.tensor([2.0, -math.inf])) == math.inf


def test_shapes_must_be_equal_and_nothing_is_no_error() -> None:
    assert relative_error(torch.ones(2), torch.ones(2, 1)) == math.inf
    assert relative_error([torch.ones(2)], [torch.ones(2), torch.ones(1)]) == math.inf
    assert relative_error(torch.ones(0), torch.ones(0)) == 0.0


def test_the_error_is_relative_to_the_largest_number_of_each_tensor() -> None:
    assert relative_error([torch.tensor([0.0, 4.0]), FINE], [torch.tensor([0.0, 2.0]), FINE]) == 1.0
    assert relative_error(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5


def test_imaginary_parts_count() -> None:
    assert relative_error(torch.tensor([1 + 2j]), torch.tensor([1 + 1j])) == pytest.approx(1 / math.sqrt(2))


def test_random_numbers_are_constants_and_later_ones_do_not_change() -> None:
    x = torch.ones(3, dtype=torch.float64)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with deterministic():
        assert torch.equal(torch.dropout(x, 0.5, True), 2 * x)
        assert torch.rand(2).tolist() == [0.5, 0.5]
        assert torch.randn(2).tolist() == [0.0, 0.0]
        assert x.to(torch.float16).dtype is torch.float64
    assert torch.equal(torch.rand(2), expected)


def test_the_masked_reference_is_a_copy_and_says_which_name_is_wrong() -> None:
    net = torch.nn.Linear(2, 3)
    before = net.weight.detach().clone()
    masked = fxprune.masked(net, {"weight": {0: [1], 1: [0]}})
    assert torch.equal(net.weight, before)
    assert masked.weight[1].tolist() == [0.0, 0.0]
    assert masked.weight[:, 0].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(fxprune.PlanError, match='no parameter "wieght"'):
        fxprune.masked(net, {"wieght": {0: [1]}})


def test_every_example_is_compared() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double().eval()
    x, other = torch.tensor([[0.0, 1.0, 2.0]]).double(), torch.tensor([[3.0, 1.0, 2.0]]).double()
    small = fxprune.transform(net, x, ratio=0.5, also=[other])
    analysis = fxprune.analyze(net, x, also=[other])
    resolved = resolve_plan(analysis, fxprune.record(small).plan)
    assert prove(analysis, small, resolved.removal, resolved.zeroed).error < 1e-12
    with torch.no_grad():
        small.get_parameter("0.weight")[:, 0] += 1.0  # which reads a zero in the first example
    assert prove(analysis, small, resolved.removal, resolved.zeroed).error > 1e-3
    assert fxprune.verify(net, small, x) < 1e-12


def test_the_group_that_is_wrong_by_itself_is_found() -> None:
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(4, 4), torch.nn.Tanh())]
    analysis = fxprune.analyze(torch.nn.Sequential(*layers, torch.nn.Linear(4, 2)).eval(), torch.ones(1, 4))
    removal = resolve_plan(analysis, analysis.plan(ratio={1: 0.5, 2: 0.5})).removal
    asked: list[list[int]] = []

    def error_of(wrong: int, value: float) -> Callable[[Any], float]:
        def error(alone: Any) -> float:
            asked.append(analysis.solution.groups_with(alone))
            return value if asked[-1] == [wrong] else 0.0

        return error

    for value in (1.0, math.inf, math.nan):
        assert first_wrong_group(error_of(2, value), removal) == 2
        assert first_wrong_group(error_of(1, value), removal) == 1
    asked.clear()
    assert first_wrong_group(error_of(0, 1.0), removal) == -1
    assert asked == [[1], [2]], "each group that loses channels, alone"


def test_no_group_is_wrong_where_the_original_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).eval(), torch.ones(2, 3)
    analysis = fxprune.analyze(net, x)
    error = UnprovenError(analysis, resolve_plan(analysis, analysis.plan(ratio=0.5)), VerificationError("it differs"))

    def fails(*args: Any, **options: Any) -> Any:
        raise NoReferenceError("it raises")

    monkeypatch.setattr(_attempt, "prove", fails)
    assert error.diagnosed().at == "no group alone, only several together"
