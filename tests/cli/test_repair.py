"""`fxprune prune --repair`."""

from __future__ import annotations

import json

import pytest
import torch

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
        (["--repair", "loader"], 2, '--repair "loader" names no batches'),
        (
            ["--repair", "tests.cli.models:width"],
            1,
            "why  tests.cli.models:width takes 'model', a loader takes nothing",
        ),
        (
            ["--repair", "tests.cli.models:number"],
            1,
            "--repair tests.cli.models:number names no batches\n  why  it is of ",
        ),
        (
            ["--repair", "tests.cli.models:TENSOR"],
            1,
            "--repair tests.cli.models:TENSOR names no batches\n  why  it is one",
        ),
        (["--repair", "tests.cli.models:loadr"], 1, 'did you mean "loader"?'),
        (["--repair", "tests.cli.models:BROKEN"], 1, "a batch does not fit the model"),
        (["--repair", "tests.cli.models:loader", "--repair-mode", "all"], 2, "repair mode"),
        (["--repair-mode", "bias"], 2, "--repair-mode is without effect here"),
    ],
)
def test_loaders_of_no_use_are_refused(words, code, text, tmp_path, capsys):
    assert main([*WORDS, "-o", str(tmp_path / "small.safetensors"), *words]) == code
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(("seed", "told"), [(0, False), (1, True)])
def test_verify_of_a_repaired_model_counts_what_the_repair_explains(seed, told, tmp_path, capsys):
    small = str(tmp_path / "small.safetensors")
    assert main([*WORDS, "-o", small, "--repair", "tests.cli.models:loader"]) == 0
    capsys.readouterr()
    assert main(["verify", *WORDS[1:4], small, "--seed", str(seed)]) == 0
    err = capsys.readouterr().err
    assert "since it was repaired: " in err
    assert ("this original has other weights than the one that it was made from: check --weights" in err) == told
    assert ("The repair can have changed 6 of them, but not " in err) == told


@pytest.mark.parametrize("command", ["verify", "summary"])
def test_a_small_model_of_other_weights_is_told(command, tmp_path, capsys):
    small, weights = str(tmp_path / "small.safetensors"), str(tmp_path / "weights.pt")
    torch.save(models.net().state_dict(), weights)
    assert main([*WORDS, "-o", small]) == 0
    measured = ["--rounds", "0"] if command == "summary" else []
    capsys.readouterr()
    assert main([command, *WORDS[1:4], small, *measured]) == 0
    assert "warning" not in capsys.readouterr().err
    for words, told in ((["--weights", weights], "were other --weights meant?"), (["--seed", "3"], "was --weights")):
        main([command, *WORDS[1:4], small, *measured, *words, "-q"])
        assert "was made from other weights than those of tests.cli.models:net: " + told in capsys.readouterr().err


def test_summary_of_a_repaired_model_tells_other_weights(tmp_path, capsys):
    small = str(tmp_path / "small.safetensors")
    assert main([*WORDS, "-o", small, "--repair", "tests.cli.models:loader"]) == 0
    words = ["summary", *WORDS[1:4], small, "--rounds", "0", "-q"]
    for seed, told in (("0", False), ("3", True)):
        capsys.readouterr()
        assert main([*words, "--seed", seed]) == 0
        assert ("was trained after its repair, or made from other weights" in capsys.readouterr().err) == told


def test_labelled_batches_are_answered_with_options(tmp_path, capsys):
    words = [*WORDS, "-o", str(tmp_path / "small.safetensors"), "-q"]
    assert main([*words, "--repair", "tests.cli.models:labelled"]) == 1
    err = capsys.readouterr().err
    assert "or say --data package.module:loader --repair for inputs with labels" in err
    assert "repair_inputs" not in err
    assert main([*words, "--data", "tests.cli.models:labelled", "--repair"]) == 0
