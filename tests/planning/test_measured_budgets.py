"""Budgets of memory and latency; times come from a formula, not from a clock."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.costs import Latency, latency_table, peak_memory
from fxprune.errors import BudgetMissedWarning, CaptureError, PlanError
from fxprune.planning import figures
from tests.costs.test_latency_table import Clock, seconds_of
from tests.costs.test_latency_table import X as IMAGE
from tests.costs.test_latency_table import net as chain
from tests.planning.test_budgets import X, net


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    """A machine whose times are those of a formula."""
    made = Clock()
    monkeypatch.setattr(latency_table, "watched", made)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def measured(models: list[nn.Module], inputs: Any, rounds: int, *, runs: Any) -> list[Latency]:
        return [Latency(seconds_of(model)[0], 0.0, 1, "cpu", 1) for model in models]

    monkeypatch.setattr(figures, "measured_in_turn", measured)
    return made


@pytest.mark.parametrize("amount", [0.5, 0.9, "60 kB", 60_000])
def test_a_budget_of_memory_is_met_by_the_model_that_is_returned(amount: Any) -> None:
    model = net(64)
    small = fxprune.transform(model, X, keep={"memory": amount})
    before, after = peak_memory(model, X), peak_memory(small, X)
    limit = before * amount if isinstance(amount, float) else 60_000
    assert 0.97 * limit <= after <= limit
    assert fxprune.record(small).measured == {"memory": (before, after)}
    assert "peak memory of activations" in fxprune.record(small).report()


def test_several_budgets_hold_at_once() -> None:
    model = net(64)
    small = fxprune.transform(model, X, keep={"memory": 0.7, "macs": 0.3})
    assert fxprune.cost(small, X).macs <= 0.3 * fxprune.cost(model, X).macs
    assert peak_memory(small, X) <= 0.7 * peak_memory(model, X)


@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
@pytest.mark.parametrize("amount", [0.5, 0.8, "15 ms"])
def test_a_budget_of_latency_is_predicted_to_be_met(amount: Any, scope: str, clock: Clock) -> None:
    model = chain()
    small = fxprune.transform(model, IMAGE, keep={"latency": amount}, scope=scope)
    before, after = seconds_of(model)[0], seconds_of(small)[0]
    limit = amount * before if isinstance(amount, float) else 15e-3
    assert 0.96 * limit <= after <= limit
    made = fxprune.record(small)
    assert made.measured == {"latency": (before, after)}
    assert any(reason.startswith("latency: ") and "predicted" in reason for reason in made.reasons)
    assert re.search(r"^latency .* ms -> .* ms", made.report(), re.MULTILINE)
    assert clock.calls <= 1 + 4 + 5


@pytest.mark.parametrize("amount", [0.35, 0.5, 0.65, 0.8])
def test_uneven_times_lead_to_no_plan_above_it(amount: float, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def uneven(original: nn.Module, small: nn.Module, inputs: Any) -> tuple[float, float, Mapping[str, float]]:
        full, whole, layers = clock(original, small, inputs)
        factor = 1 + 0.02 * (small[2].in_channels % 7) - 0.02 * (small[2].out_channels % 5)
        return full, whole * factor, layers

    monkeypatch.setattr(latency_table, "watched", uneven)
    small = fxprune.transform(chain(), IMAGE, keep={"latency": amount})
    measured = uneven(chain(), small, None)
    assert measured[1] <= amount * measured[0]
    (told,) = (reason for reason in fxprune.record(small).reasons if reason.startswith("latency: "))
    assert f"({measured[1] / measured[0]:.1%})" in told


def test_a_second_request_measures_nothing_anew(clock: Clock) -> None:
    model = chain()
    first = fxprune.transform(model, IMAGE, keep={"latency": 0.5})
    calls = clock.calls
    second = fxprune.transform(model, IMAGE, keep={"latency": 0.5})
    assert clock.calls == calls
    assert fxprune.record(first).plan == fxprune.record(second).plan


def test_a_latency_that_turns_out_longer_is_reported(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(models: list[nn.Module], inputs: Any, rounds: int, *, runs: Any) -> list[Latency]:
        return [Latency(seconds, 0.0, 1, "cpu", 1) for seconds in (0.020, 0.012)]

    monkeypatch.setattr(figures, "measured_in_turn", slow)
    with pytest.warns(BudgetMissedWarning, match="12 ms latency stay, the budget is 10 ms"):
        fxprune.transform(chain(), IMAGE, keep={"latency": 0.5})


@pytest.mark.parametrize(("table", "advice"), [(None, "latency_table=False measures again"), (False, "idle machine")])
def test_a_missed_latency_does_not_advise_what_was_asked_for(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, table: Any, advice: str
) -> None:
    def slow(models: list[nn.Module], inputs: Any, rounds: int, *, runs: Any) -> list[Latency]:
        return [Latency(seconds, 0.0, 1, "cpu", 1) for seconds in (0.020, 0.012)]

    monkeypatch.setattr(figures, "measured_in_turn", slow)
    with pytest.warns(BudgetMissedWarning) as missed:
        fxprune.transform(chain(), IMAGE, keep={"latency": 0.5}, latency_table=table)
    text = str(missed[0].message)
    assert advice in text
    assert ("latency_table=False" in text) == (table is None)


def test_a_table_of_a_busy_machine_is_dropped(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entries say that a small model is faster than it is."""

    def busy(original: nn.Module, small: nn.Module, inputs: Any) -> tuple[float, float, Mapping[str, float]]:
        full, whole, layers = clock(original, small, inputs)
        return full, 0.7 * whole, layers

    monkeypatch.setattr(latency_table, "watched", busy)
    with pytest.warns(BudgetMissedWarning) as missed:
        fxprune.transform(chain(), IMAGE, keep={"latency": 0.8})
    text = str(missed[0].message)
    assert "has 68.6% of the original for this model, and 98.1% was measured" in text
    assert "the table is dropped" in text
    assert "latency_table=" in text
    monkeypatch.setattr(latency_table, "watched", clock)
    small = fxprune.transform(chain(), IMAGE, keep={"latency": 0.8})
    assert seconds_of(small)[0] <= 0.8 * seconds_of(chain())[0]


def test_a_latency_that_cannot_be_reached_says_how_near_it_came(clock: Clock) -> None:
    with pytest.warns(BudgetMissedWarning, match="the budget is not met"):
        small = fxprune.transform(chain(), IMAGE, keep={"latency": 0.1})
    assert any("max_ratio" in reason for reason in fxprune.record(small).reasons)


def test_a_plan_for_a_latency(clock: Clock, tmp_path: Path) -> None:
    analysis = fxprune.analyze(chain(), IMAGE)
    plan = analysis.plan(keep={"latency": 0.5}, latency_table=tmp_path / "table")
    assert plan
    assert list((tmp_path / "table").iterdir())


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        ({"latency": "5"}, "no time"),
        ({"latency": "5 MB"}, "no time"),
        ({"latency": "0 ms"}, "nothing would stay"),
        ({"latency": 5}, "a share or a text with a unit"),
        ({"latency": 0.0}, "a share must be in"),
        ({"latency": True}, "a share or a text with a unit"),
        ({"latency": "10 s"}, "above the model itself"),
        ({"memory": "5 ms"}, "no figure"),
        ({"memory": "0 kB"}, "nothing would stay"),
        ({"memory": "1 TB"}, "above the model itself"),
        ({"memory": 1.5}, "a share must be in"),
        ({"memory": "3 MMACs"}, "the unit does not fit"),
        ({"macs": "200 MB"}, "the unit does not fit"),
        ({"bytes": "2 kparams"}, "the unit does not fit"),
        ({"latncy": 0.5}, "no such budget"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(keep: dict[str, Any], text: str, clock: Clock) -> None:
    with pytest.raises(PlanError, match=text):
        fxprune.transform(chain(), IMAGE, keep=keep)
    assert text == "above the model itself" or not clock.calls


def test_a_unit_of_another_measure_says_what_both_are_and_which_budget_is_meant() -> None:
    with pytest.raises(PlanError) as caught:
        fxprune.transform(chain(), IMAGE, keep={"params": "0.2 MB"})
    assert '"params" is a number of parameters, and "0.2 MB" is a size in bytes' in str(caught.value)
    assert 'write keep={"bytes": "0.2 MB"}, or a number of parameters, such as "200 k"' in str(caught.value)


def test_a_latency_of_a_model_that_computes_nothing_is_refused() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).to("meta"), torch.zeros(1, 4, device="meta")
    options: dict[str, Any] = {"importance": "random", "seed": 0, "verify": False}
    with pytest.raises(CaptureError, match="meta device"):
        fxprune.transform(model, x, keep={"latency": 0.5}, **options)
    small = fxprune.transform(model, x, keep={"memory": 0.8}, **options)
    assert fxprune.record(small).measured["memory"][1] <= 0.8 * peak_memory(model, x)


class Halves(nn.Module):
    """Has a width in its code, so that the class keeps one group, and a graph would lose it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.second(x)).reshape(-1, 64))


def test_channels_that_code_holds_are_locked_while_a_latency_is_measured(clock: Clock) -> None:
    model = Halves().eval()
    small = fxprune.transform(model, torch.randn(2, 8), keep={"latency": 0.98}, prefer="class")
    assert type(small) is Halves
    assert seconds_of(small)[0] <= 0.98 * seconds_of(model)[0]


@pytest.mark.parametrize("options", [{"keep": {"latency": 0.98}}, {"ratio": 0.5, "round_to": "auto"}])
def test_no_model_is_measured_that_code_cannot_run(options: dict[str, Any], clock: Clock) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxprune.errors.ClassLostWarning)
        small = fxprune.transform(Halves().eval(), torch.randn(2, 8), **options)
    assert fxprune.record(small).plan
