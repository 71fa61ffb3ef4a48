"""Budgets on the command line: their exit code, and options that would be without effect."""

from __future__ import annotations

import json

import pytest

from fxprune.cli import main
from fxprune.costs import Latency, LatencyFile, latency_table
from fxprune.planning import figures
from tests.cli.test_commands import NET
from tests.costs.test_latency_table import Clock

FULL, HALF = (Latency(seconds, 0.0, 1, "cpu", 1) for seconds in (0.02, 0.01))


def test_a_budget_that_is_not_met_has_an_exit_code_of_its_own(tmp_path, capsys):
    file = str(tmp_path / "small.safetensors")
    assert main(["prune", *NET, "--keep", "macs=0.5", "-o", file]) == 0
    assert main(["prune", *NET, "--keep", "macs=0.001", "--max-ratio", "0.5", "-o", file]) == 5
    told = capsys.readouterr()
    assert told.err.count("the budget is not met") == 1
    assert "the budget is not met" not in told.out  # once: a warning on stderr
    assert main(["prune", *NET, "--keep", "macs=0.001", "--max-ratio", "0.5", "-o", file, "--json"]) == 5
    assert "the budget is not met" in json.loads(capsys.readouterr().out)["reasons"][0]  # data has it all the same


def test_memory_and_latency_are_limited_and_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(latency_table, "watched", Clock())
    monkeypatch.setattr(figures, "measured_in_turn", lambda models, inputs, rounds, runs: [FULL, HALF])
    words = ["prune", *NET, "-o", str(tmp_path / "small.safetensors"), "--json"]
    assert main([*words, "--keep", "memory=0.95", "--keep", "latency=0.9"]) == 0
    told = json.loads(capsys.readouterr().out)["measured"]
    assert told["memory"]["after"] <= 0.95 * told["memory"]["before"]
    assert told["latency"] == {"before": 0.02, "after": 0.01}
    assert main([*words, "--keep", "latency=0.4"]) == 5  # what is measured at the end is half


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--ratio", "0.5", "--scope", "global"], 2, "--scope is without effect"),
        (["--keep", "macs=0.5", "--ratio", "0.5"], 2, "exactly one of"),
        (["--keep", "macs"], 2, "no KEY=AMOUNT"),
        (["--keep", "macs=0.5", "--keep", "macs=0.4"], 2, "given twice"),
        (["--keep", "watts=0.5"], 2, "no such budget"),
        (["--counts", "conv1=0"], 2, "no PATTERN=N"),
        (["--keep", "macs=0.5", "--max-ratio", "0"], 2, "no share in"),
        (["--keep", "macs=0.5", "--scope", "all"], 2, "scope"),
        (["--keep", "latency=5"], 2, "a share or a text with a unit"),
        (["--keep", "latency=5 sec"], 2, "the text is no time"),
        (["--keep", "latency=1000s"], 1, "above the model itself"),
        (["--keep", "memory=5ms"], 2, "the text is no figure"),
    ],
)
def test_wrong_budgets_are_refused(words, code, text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(latency_table, "watched", Clock())
    monkeypatch.setattr(LatencyFile, "write", lambda *arguments: None)
    assert main(["prune", *NET, *words, "-o", str(tmp_path / "small.safetensors")]) == code
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
