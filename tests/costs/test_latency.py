"""Latency: medians, spread and turns, with a clock that the test gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from fxprune.costs import Latency, latency, measure, measured_in_turn
from fxprune.errors import CaptureError, InputError


def clock_of(*seconds: float) -> Callable[[Callable[[], Any]], float]:
    """A clock that shows these times, one after the other."""
    times: Iterator[float] = iter(seconds)

    def clock(call: Callable[[], Any]) -> float:
        call()
        return next(times)

    return clock


def test_the_latency_is_the_median_with_the_distance_of_the_quartiles() -> None:
    found = measure(nn.Linear(2, 2), torch.zeros(1, 2), rounds=7, clock=clock_of(5, 1, 2, 3, 4, 6, 70))
    assert found == Latency(4, 4, 7, "cpu", torch.get_num_threads())


def test_models_are_measured_in_turns() -> None:
    calls: list[str] = []

    class Noted(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.name)
            return x

    first, second = measured_in_turn([Noted("a"), Noted("b")], torch.zeros(1), 3, clock_of(1, 10, 2, 20, 3, 30))
    assert (first.seconds, second.seconds) == (2, 20)
    assert "".join(calls) == "ab" + "ab" * 3


def test_a_measurement_leaves_the_model_and_the_random_state_as_they_are() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()).train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    measure(model, x, rounds=2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


class _WritesLater(nn.Module):
    """A model that writes into its weight in all calls but the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.calls = nn.Linear(3, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            with torch.no_grad():
                self.a.weight.mul_(2)
        return cast(Tensor, self.a(x))


def test_parameters_that_a_later_call_writes_into_stay_as_they_are() -> None:
    model = _WritesLater()
    before = model.a.weight.detach().clone()
    measure(model, torch.randn(4, 3), rounds=2)
    assert torch.equal(model.a.weight, before)


def test_parameters_of_a_large_model_that_a_later_call_writes_into_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "MOST_COPIED", 0)
    with pytest.warns(UserWarning, match=r"a call after the first wrote into a\.weight of your model"):
        measure(_WritesLater(), torch.randn(4, 3), rounds=2)


def test_a_latency_is_positive_with_the_clock_of_torch() -> None:
    found = measure(nn.Linear(2, 2), torch.zeros(1, 2), rounds=3)
    assert found.seconds > 0
    assert found.rounds == 3


def test_a_latency_as_text_has_its_conditions() -> None:
    assert str(Latency(0.5, 0.02, 9, "cuda:0", 4)) == "500 ms (± 2%, 9 rounds, cuda:0, 4 threads)"


def test_models_that_compute_nothing_are_refused() -> None:
    with pytest.raises(CaptureError, match="meta device"):
        measure(nn.Linear(2, 2, device="meta"), torch.zeros(1, 2, device="meta"))


def test_a_forward_that_raises_is_shown() -> None:
    with pytest.raises(CaptureError, match="forward raises"):
        measure(nn.Linear(2, 2), torch.zeros(1, 3))


def test_inputs_without_tensors_are_refused() -> None:
    with pytest.raises(InputError):
        measure(nn.Linear(2, 2), ())
