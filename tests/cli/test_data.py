"""`fxprune prune --importance taylor --data package.module:loader --loss package.module:loss --repair`."""

from __future__ import annotations

import json

import pytest

import fxprune
from fxprune.cli import main
from tests.cli import models

NET = ["tests.cli.models:net", "--input", "2x3x12x12"]
WORDS = ["prune", *NET, "-r", "0.5"]
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


def removed(small):
    return fxprune.record(fxprune.load(str(small), into=models.Net())).removed


@pytest.mark.parametrize(
    "words", [[*TAYLOR, *DATA, *LOSS], [*TAYLOR, *DATA, *LOSS, "--repair"], ["--importance", "l1"], []]
)
def test_saved_scores_give_the_same_model_without_the_data(words, tmp_path, capsys):
    first, second, plain, scores = (str(tmp_path / name) for name in ("a", "b", "c", "scores.json"))
    first, second, plain = (f"{name}.safetensors" for name in (first, second, plain))
    assert main([*WORDS, *words, "-o", plain]) == 0
    assert main([*WORDS, *words, "--save-scores", scores, "-o", first]) == 0
    assert f"wrote {scores}" in capsys.readouterr().err
    assert main([*WORDS, "--scores", scores, "-o", second]) == 0
    assert removed(first) == removed(second) == removed(plain)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--scores", "none.json"], 1, "none.json"),
        (["--scores", "scores.json", "--importance", "l1"], 2, "--importance and --scores were given"),
        (["--scores", "scores.json", "--save-scores", "b.json"], 2, "--save-scores is without effect here"),
        (["--scores", "scores.json", *DATA], 2, "--data is without effect here"),
        (["--scores", "scores.json"], 1, "is not what it should be"),
        (["--save-scores", "scores.txt"], 2, "end it in .json"),
    ],
)
def test_scores_of_no_use_are_refused(words, code, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.json").write_text("{}")
    assert main([*WORDS, "-o", "small.safetensors", *words]) == code
    assert text in capsys.readouterr().err


def test_scores_have_no_effect_beside_a_plan(tmp_path, capsys):
    (tmp_path / "scores.json").write_text("{}")
    (tmp_path / "plan.json").write_text("{}")
    scores, plan = str(tmp_path / "scores.json"), str(tmp_path / "plan.json")
    words = ["prune", *NET, "--plan", plan, "--scores", scores, "-o", str(tmp_path / "small.safetensors")]
    assert main(words) == 2
    assert "--scores is without effect here" in capsys.readouterr().err
