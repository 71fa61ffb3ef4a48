"""`fxprune prune --importance taylor --data package.module:loader --loss package.module:loss --repair`."""

from __future__ import annotations

import json

import pytest

from fxprune.cli import main

WORDS = ["prune", "tests.cli.models:net", "--input", "2x3x12x12", "-r", "0.5"]
DATA = ["--data", "tests.cli.models:labelled"]
TAYLOR = ["--importance", "taylor"]
LOSS = ["--loss", "tests.cli.models:loss"]


@pytest.mark.parametrize("words", [[*TAYLOR, *DATA, *LOSS], ["--importance", "thinet", *DATA]])
def test_prune_measures_an_importance_on_data_and_repairs_on_it(words, tmp_path, capsys):
    small = str(tmp_path / "small.safetensors")
    assert main([*WORDS, *words, "--repair", "-o", small, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["repair"]
    assert told["after"] <= told["before"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (TAYLOR, 2, "--importance taylor needs --data"),
        ([*TAYLOR, *DATA], 2, "--importance taylor needs --loss"),
        (["--repair"], 2, "--repair without a loader needs --data"),
        (DATA, 2, "--data is without effect here"),
        (LOSS, 2, "--loss is without effect here"),
        ([*DATA, *LOSS, "--repair"], 2, "--loss is without effect here"),
        (["--importance", "thinet", *DATA, *LOSS], 2, "--loss is without effect here"),
        ([*TAYLOR, *DATA, "--loss", "loss"], 2, '"loss" names no function'),
        ([*TAYLOR, *DATA, "--loss", "tests.cli.models:lost"], 1, 'did you mean "loss"?'),
        ([*TAYLOR, *DATA, "--loss", "torch.nn.functional:cross_entropy"], 1, "loss is no function of the model and"),
        ([*TAYLOR, "--data", "tests.cli.models:loader", *LOSS], 1, "the loss raises"),
    ],
)
def test_data_and_losses_of_no_use_are_refused(words, code, text, tmp_path, capsys):
    assert main([*WORDS, "-o", str(tmp_path / "small.safetensors"), *words]) == code
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
