"""`fxprune sensitivity`, `fxprune pareto`, and `fxprune prune --scope search`."""

from __future__ import annotations

import json

import pytest

from fxprune import progress
from fxprune.cli import main

MODEL = ["tests.cli.models:net", "--input", "2x3x12x12"]
SCORE = ["--score", "tests.cli.models:size"]
REPAIR = ["--repair", "tests.cli.models:loader"]


def test_sensitivity_scores_every_group_at_every_ratio(tmp_path, capsys):
    words = ["sensitivity", *MODEL, *SCORE, "--ratios", "0.5,0.25", "--plot", str(tmp_path / "curve.svg")]
    assert main([*words, "--file", str(tmp_path / "run.json"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "fxprune.sensitivity/1"
    assert [(point["channels"], point["kept"]) for point in told["points"]] == [(16, 12), (16, 8), (32, 24), (32, 16)]
    assert all(point["value"] < told["whole"] for point in told["points"])
    assert {path.name for path in tmp_path.iterdir()} == {"curve.svg", "run.json"}
    assert main([*words, "--file", str(tmp_path / "run.json")]) == 0
    assert "channels" in capsys.readouterr().out
    assert main([*words, "--file", str(tmp_path / "run.json"), "--importance", "l1"]) == 1
    assert "is of another run" in capsys.readouterr().err


def test_pareto_scores_every_budget(capsys):
    assert main(["pareto", *MODEL, *REPAIR, "--budgets", "0.5,3000", "--key", "params", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["measure"] == "error"
    assert [point["budget"] for point in told["points"]] == [0.5, 3000]
    assert all(point["repaired"] <= point["value"] for point in told["points"])
    assert main(["pareto", *MODEL, *SCORE, "--budgets", "0.001", "--scope", "global", "--json"]) == 5
    assert json.loads(capsys.readouterr().out)["points"][0]["met"] is False


def test_prune_searches_for_widths(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "shown", lambda: True)  # as on a terminal
    file, small = str(tmp_path / "search.json"), str(tmp_path / "small.safetensors")
    words = ["prune", *MODEL, "--keep", "macs=0.5", "--scope", "search", "--search-steps", "2", "-o", small]
    assert main([*words, *REPAIR, "--search-file", file, "--json"]) == 0
    told = capsys.readouterr()
    assert "the search measured 2 small models" in told.out
    assert "search: 100%" in told.err
    assert len(json.loads((tmp_path / "search.json").read_text())["steps"]) == 2
    assert main(words) == 2
    assert "--scope search needs --repair" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["sensitivity", *MODEL], 2, "there is nothing to measure by"),
        (["sensitivity", *MODEL, *SCORE, "--ratios", "0.5,1"], 2, "no list of shares"),
        (["sensitivity", *MODEL, *SCORE, "--ratios", "half"], 2, "no finite number"),
        (["sensitivity", *MODEL, *SCORE, "--groups", "conv9"], 1, "conv9"),
        (["sensitivity", *MODEL, "--score", "tests.cli.models:sice"], 1, 'did you mean "size"?'),
        (["sensitivity", *MODEL, "--score", "tests.cli.models:BROKEN"], 1, "score"),
        (["sensitivity", *MODEL, *SCORE, "--plot", "curve.gif"], 2, "the suffix says the format"),
        (["sensitivity", *MODEL, *SCORE, "--file", "run.txt"], 2, "the suffix says the format"),
        (["pareto", *MODEL, *SCORE, "--budgets", "2.5"], 2, '"2.5" with --key macs: a share must be in (0, 1]'),
        (["pareto", *MODEL, *SCORE, "--budgets", "0.5,50%"], 2, '"50%" is no number with a unit of macs; write for'),
        (["pareto", *MODEL, *SCORE, "--budgets", "0.5,2"], 2, "2 would be an absolute figure"),
        (["pareto", *MODEL, *SCORE, "--budgets", "5 ms"], 2, '"5 ms" is no number with a unit of macs'),
        (["pareto", *MODEL, *SCORE, "--budgets", "5", "--key", "latency"], 2, "a share or a text with a unit"),
        (["pareto", *MODEL, *SCORE, "--budgets", "1000000000000"], 1, "the budget is above the model itself"),
        (["pareto", *MODEL, *SCORE, "--key", "mac"], 2, 'did you mean "macs"?'),
        (["pareto", *MODEL, *SCORE, "--uniform", "conv9"], 1, 'names nothing: "conv9"'),
        (["pareto", *MODEL, *SCORE, "--scope", "search"], 2, "there is no scope"),
        (["pareto", *MODEL, *SCORE, "--importance", "thinet"], 2, "needs --data"),
        (["prune", *MODEL, "-r", "0.5", "-o", "a.safetensors", "--search-steps", "3"], 2, "--search-steps is without"),
    ],
)  # fmt: skip
def test_wrong_measurements_are_refused(words, code, text, capsys):
    assert main(words) == code
    err = capsys.readouterr().err
    assert text in err
    assert ("making" in err) == (code == 1 and "sice" not in " ".join(words))
