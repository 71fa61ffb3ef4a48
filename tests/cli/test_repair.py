"""`fxprune prune --repair`."""

from __future__ import annotations

import json

import pytest

import fxprune
from fxprune.cli import main
from tests.cli import models

WORDS = ["prune", "tests.cli.models:net", "--input", "2x3x12x12", "-r", "0.5"]


@pytest.mark.parametrize("mode", ["weights", "bias", "norms"])
def test_prune_repairs_on_the_batches_of_a_loader(mode, tmp_path, capsys):
    small = str(tmp_path / "small.safetensors")
    assert main([*WORDS, "-o", small, "--repair", "tests.cli.models:loader", "--repair-mode", mode, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["repair"]
    assert told["mode"] == mode
    assert told["after"] <= told["before"]
    assert fxprune.record(fxprune.load(small, into=models.Net())).repair.after == told["after"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--repair", "loader"], 2, "names no batches"),
        (["--repair", "tests.cli.models:loadr"], 1, 'did you mean "loader"?'),
        (["--repair", "tests.cli.models:BROKEN"], 1, "a batch does not fit the model"),
        (["--repair", "tests.cli.models:loader", "--repair-mode", "all"], 2, "repair mode"),
        (["--repair-mode", "bias"], 2, "--repair-mode is without effect here"),
    ],
)
def test_loaders_of_no_use_are_refused(words, code, text, tmp_path, capsys):
    assert main([*WORDS, "-o", str(tmp_path / "small.safetensors"), *words]) == code
    assert text in capsys.readouterr().err
