"""`round_to="auto"`, with times from a formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.cli import main
from fxprune.costs import latency_table
from fxprune.errors import PlanError
from tests.costs.test_latency_table import X, net

POSITIONS = {"0": 36, "2": 16, "3": 4}
"""The positions of the outputs of each layer of `wide`."""


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """A machine whose kernels take whole blocks of so many channels."""

    def seconds(model: nn.Module) -> dict[str, float]:
        return {
            name: POSITIONS.get(name, 1)
            * 1e-9
            * math.prod(math.ceil(size / request.param) * request.param for size in layer.weight.shape[:2])
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear)
        }

    def watched(original: nn.Module, small: nn.Module, inputs: Any) -> tuple[float, float, Mapping[str, float]]:
        layers = seconds(small)
        return sum(seconds(original).values()), sum(layers.values()), layers

    monkeypatch.setattr(latency_table, "watched", watched)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return int(request.param)


def wide() -> nn.Module:
    return nn.Sequential(*net()[:2], nn.Conv2d(32, 320, 3), nn.Conv2d(320, 200, 3), nn.Conv2d(200, 8, 2)).eval()


@pytest.mark.parametrize("kernel", [1, 8, 16], indirect=True)
def test_the_multiple_that_pays_is_taken_and_said(kernel: int) -> None:
    small = fxprune.transform(wide(), X, keep={"macs": 0.4}, round_to="auto")
    made = fxprune.record(small)
    assert any(reason.startswith(f'round_to="auto" takes {kernel}: half of the MACs take') for reason in made.reasons)
    assert all(small[place].out_channels % kernel == 0 for place in (0, 2, 3))


@pytest.mark.parametrize("kernel", [8], indirect=True)
def test_a_ratio_can_be_rounded_so_too(kernel: int) -> None:
    plan = fxprune.analyze(wide(), X).plan(ratio=0.45, round_to="auto")
    same = fxprune.analyze(wide(), X).plan(ratio=0.45, round_to=kernel)
    assert {k: {d: len(i) for d, i in v.items()} for k, v in plan.removed.items()} == {
        k: {d: len(i) for d, i in v.items()} for k, v in same.removed.items()
    }


@pytest.mark.parametrize("value", ["aut", "", 0, 1.5, True, None])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(PlanError, match="an integer of at least 1, not"):
        fxprune.analyze(net(), X).plan(ratio=0.5, round_to=value)


def test_a_sensitivity_has_no_multiple_of_its_own() -> None:
    with pytest.raises(PlanError, match="widths of a ratio"):
        fxprune.sensitivity(net(), X, lambda model: 1.0, round_to="auto")


@pytest.mark.parametrize("kernel", [8], indirect=True)
def test_the_command_line_takes_auto(kernel: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", "tests.cli.models:Net", "--input", "1x3x8x8", "-r", "0.5", "-o", str(tmp_path / "s.safetensors")]
    assert main([*words, "--round-to", "auto"]) == 0
    assert "--round-to auto takes " in capsys.readouterr().out
    assert main([*words, "--round-to", "all"]) == 2


def test_a_multiple_that_cannot_meet_the_budget_is_not_taken() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(5, 8)
    for share in (0.4, 0.15):
        small = fxprune.transform(net, x, keep={"macs": share}, round_to="auto", latency_table=False)
        assert fxprune.cost(small, x).macs <= share * fxprune.cost(net, x).macs
        assert "multiples of 32" not in str(fxprune.record(small).reasons)
