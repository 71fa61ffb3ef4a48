"""Tables of latencies, with times that a formula gives in place of a clock."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.channels.groups import Removal
from fxprune.costs import LatencyFile, LatencyTable
from fxprune.costs.latency_table import watched
from fxprune.errors import CaptureError, FileError
from fxprune.fold import resolve_plan
from fxprune.rewrite.graph import rewrite

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.Flatten(), nn.Linear(48 * 16, 5)
    ).eval()


def seconds_of(model: nn.Module) -> tuple[float, dict[str, float]]:
    """The time of a model, and of each of its layers: multiply-adds, a part that stays, and 2 ms beside them."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layers[name] = 1e-3 + 1e-6 * module.weight.numel()
        elif isinstance(module, nn.ReLU | nn.Flatten):
            layers[name] = 1e-5
    return sum(layers.values()) + 2e-3, layers


POINT = '{"original": -1, "whole": 1, "layers": {}}'
NEGATIVE = f'{{"schema": "fxprune.latency/1", "conditions": {{}}, "points": {{"a": {POINT}}}}}'


class Clock:
    """Measures as `watched` does. slower: the factor by which the machine is slow. calls: how often it was called."""

    def __init__(self) -> None:
        self.calls, self.slower = 0, 1.0

    def __call__(self, original: nn.Module, small: nn.Module, inputs: Any) -> tuple[float, float, Mapping[str, float]]:
        self.calls += 1
        whole, layers = seconds_of(small)
        return (
            seconds_of(original)[0] * self.slower,
            whole * self.slower,
            {name: seconds * self.slower for name, seconds in layers.items()},
        )


def table_of(model: nn.Module, clock: Clock, file: LatencyFile | None = None) -> tuple[fxprune.Analysis, LatencyTable]:
    analysis = fxprune.analyze(model, X)
    return analysis, LatencyTable(analysis, lambda removal: rewrite(analysis, removal).small, file, clock)


def removal_of(analysis: fxprune.Analysis, ratio: float) -> Removal:
    return resolve_plan(analysis, analysis.plan(ratio=ratio)).removal


def test_what_was_measured_is_predicted_as_it_was_measured() -> None:
    model, clock = net(), Clock()
    analysis, table = table_of(model, clock)
    assert table.full == seconds_of(model)[0]
    removal = removal_of(analysis, 0.5)
    assert table.learn(removal)
    assert not table.learn(removal)
    assert table.predict(removal) == pytest.approx(seconds_of(rewrite(analysis, removal).small)[0], rel=1e-12)
    assert clock.calls == 2


def test_the_whole_model_takes_what_the_original_takes() -> None:
    """A copy that was measured on a machine that became faster in between fitted a budget without a removal."""
    model, clock = net(), Clock()

    def watch(*args: Any) -> tuple[float, float, dict[str, float]]:
        original, whole, layers = clock(*args)
        return original, 0.8 * whole, {path: 0.8 * seconds for path, seconds in layers.items()}

    analysis = fxprune.analyze(model, X)
    table = LatencyTable(analysis, lambda removal: rewrite(analysis, removal).small, None, watch)
    assert table.predict(removal_of(analysis, 0.0)) == table.full == seconds_of(model)[0]
    assert table.predict(removal_of(analysis, 0.1)) > 0.9 * table.full


def test_between_two_measurements_each_layer_is_interpolated() -> None:
    analysis, table = table_of(net(), Clock())
    table.learn(removal_of(analysis, 0.75))
    for ratio in (0.25, 0.5):
        removal = removal_of(analysis, ratio)
        assert table.predict(removal) == pytest.approx(seconds_of(rewrite(analysis, removal).small)[0], rel=1e-9)


def test_a_machine_that_becomes_slower_changes_no_ratio() -> None:
    clock = Clock()
    analysis, table = table_of(net(), clock)
    clock.slower = 3.0
    removal = removal_of(analysis, 0.5)
    table.learn(removal)
    assert table.predict(removal) == pytest.approx(seconds_of(rewrite(analysis, removal).small)[0])


def test_measurements_are_kept_in_a_file(tmp_path: Path) -> None:
    model, first, second = net(), Clock(), Clock()
    analysis, table = table_of(model, first, LatencyFile.of(model, tmp_path))
    table.learn(removal_of(analysis, 0.5))
    again, known = table_of(model, second, LatencyFile.of(model, tmp_path))
    known.learn(removal_of(again, 0.5))
    assert second.calls == 0
    assert (known.full, known.predict(removal_of(again, 0.4))) == (table.full, table.predict(removal_of(analysis, 0.4)))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_is_for_a_model_its_inputs_and_a_number_of_threads(tmp_path: Path) -> None:
    model = net()
    file = LatencyFile.of(model, tmp_path)
    assert file is not None
    other = LatencyFile(file.folder, {**file.conditions, "threads": 99})
    assert {file.path("a"), file.path("b"), other.path("a")} == {file.path("a"), file.path("b"), other.path("a")}
    assert file.path("a") != other.path("a")
    table_of(model, Clock(), file)
    table_of(nn.Sequential(*model, nn.ReLU()), Clock(), file)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("text", ["", "{}", NEGATIVE, '{"schema": "other/1", "conditions": {}, "points": {}}', "[1, 2"])
def test_a_file_that_is_not_as_it_should_be_is_measured_again(tmp_path: Path, text: str) -> None:
    model, clock = net(), Clock()
    table_of(model, Clock(), LatencyFile.of(model, tmp_path))
    (path,) = tmp_path.iterdir()
    path.write_text(text)
    table_of(model, clock, LatencyFile.of(model, tmp_path))
    assert clock.calls == 1
    assert json.loads(path.read_text())["schema"] == "fxprune.latency/1"


def test_files_can_be_turned_off() -> None:
    assert LatencyFile.of(net(), False) is None


def test_a_folder_that_cannot_be_written_is_an_error_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net()
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(FileError, match="cannot be kept"):
        table_of(model, Clock(), LatencyFile.of(model, tmp_path / "taken"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    with pytest.warns(UserWarning, match="are not kept"):
        table_of(model, Clock(), LatencyFile.of(model, None))


def test_layers_are_timed_where_they_stand() -> None:
    model = net()
    before, after, layers = watched(model, model, ((X,), {}))
    assert before > 0
    assert after > 0
    assert set(layers) == {"0", "1", "2", "3", "4"}
    assert min(layers.values()) > 0


def test_the_layers_of_graphs_are_known() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.conv(x)).mean((2, 3)))

    model = Functional().eval()
    for path in ("eager", "fx", "export"):
        analysis = fxprune.analyze(model, X, path=path)
        clock = Clock()
        table = LatencyTable(
            analysis,
            lambda removal, analysis=analysis: rewrite(analysis, removal).small,
            None,
            clock if path != "export" else watched,
        )
        table.learn(removal_of(analysis, 0.75))
        assert table.predict(removal_of(analysis, 0.5)) > 0


def test_models_that_compute_nothing_have_no_latency() -> None:
    model = nn.Linear(4, 8, device="meta")
    analysis = fxprune.analyze(model, torch.zeros(1, 4, device="meta"))
    with warnings.catch_warnings(), pytest.raises(CaptureError, match="meta device"):
        LatencyTable(analysis, lambda removal: model)
