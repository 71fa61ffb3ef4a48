"""Every example runs, in sizes that take seconds; the digits keep what they promise even then."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def load(name):
    """The example as a module; once per process, because operators and rules are registered once."""
    key = f"fxprune_example_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, EXAMPLES / f"{name}.py")
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


def test_examples_are_there():
    names = "custom_importance digits export masks own_class plan_and_report thinet traced_model"
    assert names.split() == NAMES


@pytest.mark.parametrize("name", [n for n in NAMES if n != "digits"])
def test_example_runs(name, capsys):
    load(name).main()
    assert len(capsys.readouterr().out) > 100


@pytest.mark.parametrize("name", NAMES)
def test_example_says_what_it_answers_and_how_to_start_it(name):
    text = load(name).__doc__
    assert text.splitlines()[0].count("?") >= 1
    assert f"python examples/{name}.py" in text


def test_digits(capsys):
    found = load("digits").main(quick=True)
    printed, progress = capsys.readouterr()
    for row in (
        "accuracy before pruning",
        "accuracy right after pruning",
        "accuracy after fine-tuning",
        "parameters",
        "MACs",
        "latency, batch 1 (ms)",
        "latency, batch 64 (ms)",
        "verification error",
    ):
        assert sum(line.startswith(row) for line in printed.splitlines()) == 1, row
    assert "How channels were chosen" in printed
    assert "stage1.0.conv1" in printed, "the dependency report"
    assert "output of the model" in printed, "what is locked, and why"
    for bar in ("train", "bisection", "fine-tune"):
        assert f"{bar}: 100%" in progress
    assert found["before"] > 0.9
    assert found["tuned"] > 0.8
    assert found["macs"] <= 0.5
    assert found["error"] < 1e-9
