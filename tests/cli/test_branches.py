"""Residual branches on the command line: listed by `inspect`, named by `--drop`, chosen with `--depth`."""

from __future__ import annotations

import json

import pytest

import fxprune
from tests.cli.test_commands import run

MODEL = ("tests.depth.models:Residuals", "--input", "4x3x8x8")


def test_inspect_lists_branches_with_what_each_frees(capsys):
    code, out, _ = run(capsys, "inspect", *MODEL)
    assert code == 0
    assert ["layer2.1", "540", "29952", "can", "go"] in [line.split() for line in out.splitlines()]
    listed = json.loads(run(capsys, "inspect", *MODEL, "--format", "json")[1])["branches"]
    assert [(b["name"], b["params"], b["why_not"]) for b in listed][2:] == [
        ("layer2.0", 2208, ""),
        ("layer2.1", 540, ""),
    ]


def test_prune_drops_branches(capsys, tmp_path):
    small, plan = str(tmp_path / "s.safetensors"), str(tmp_path / "p.json")
    code, out, _ = run(capsys, "prune", *MODEL, "--drop", "layer1.*", "-o", small, "--save-plan", plan)
    assert code == 0
    assert "residual branches went whole: layer1.0, layer1.1" in out
    assert [one.name for one in fxprune.Plan.load(plan).dropped] == ["layer1.0", "layer1.1"]
    code, out, _ = run(capsys, "inspect", *MODEL, "--plan", plan)
    assert code == 0
    assert "5525 -> 3157" in out
    assert run(capsys, "verify", *MODEL[:1], small, *MODEL[1:])[0] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--drop", "layer1.1", "--importance", "l1"], "--importance is without effect"),
        (["--ratio", "0.5", "--depth"], "--depth is without effect"),
        (["--keep", "macs=0.5", "--depth"], "needs data"),
        (["--plan", "p.json", "--drop", "layer1.1"], "--drop is without effect"),
        (["--drop", "stem"], "names no residual branch"),
    ],
)
def test_options_of_branches_that_cannot_be_meant_are_refused(capsys, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.json").write_text("{}")
    code, _, err = run(capsys, "prune", *MODEL, *options, "-o", "s.safetensors")
    assert code in (1, 2)
    assert words in err
