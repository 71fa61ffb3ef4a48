"""`fxprune summary`."""

from __future__ import annotations

import json

import pytest

import fxprune
from fxprune.cli import main
from tests.cli import models

INPUT = ["--input", "2x3x12x12"]


@pytest.fixture
def small(tmp_path):
    path = str(tmp_path / "small.safetensors")
    assert main(["prune", "tests.cli.models:net", *INPUT, "-r", "0.5", "-o", path, "-q"]) == 0
    return path


def test_summary_says_the_figures_of_both_models(small, capsys):
    capsys.readouterr()
    words = ["summary", "tests.cli.models:net", small, *INPUT, "--rounds", "2"]
    assert main([*words, "--score", "tests.cli.models:width", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "fxprune.summary/1"
    assert (told["before"]["score"], told["after"]["score"]) == (16, 8)
    assert told["after"]["params"] == fxprune.record(fxprune.load(small, into=models.Net())).cost[1].params
    assert told["after"]["latency"]["rounds"] == 2
    assert main([*words, "-q"]) == 0
    assert "peak memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--score", "width"], 2, '--score "width" names no function\n  why  it is named as package.module:function'),
        (["--score", "tests.cli.models:widht"], 1, 'did you mean "width"?'),
        (["--score", "tests.cli.models:BROKEN"], 1, "score must be a function"),
        (["--rounds", "-1"], 2, "--rounds"),
    ],
)
def test_scores_of_no_use_are_refused(words, code, text, small, capsys):
    assert main(["summary", "tests.cli.models:net", small, *INPUT, *words]) == code
    assert text in capsys.readouterr().err
