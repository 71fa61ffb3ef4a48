"""Every example runs, in sizes that take seconds; the digits keep what they promise even then."""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
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


NOTEBOOKS = {"look_first": 5, "where_it_hurts": 3}
"""Notebook -> how many of its cells end in something to look at."""


def run_cell(source, namespace):
    """The output that a notebook shows after a cell: the value of its last line, as HTML where it has such a form."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell.py", "exec"), namespace)
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), "cell.py", "eval"), namespace)
    return value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs_and_holds_no_results(name, tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text())
    assert (notebook["nbformat"], notebook["cells"][0]["cell_type"]) == (4, "markdown")
    assert "?" in notebook["cells"][0]["source"][0], "the title is a question"
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    namespace = {"__name__": "__main__"}
    shown = [run_cell("".join(cell["source"]), namespace) for cell in cells]
    plt.close("all")
    assert len([text for text in shown if text]) == NOTEBOOKS[name]
    assert any("<table" in text for text in shown if text)


def test_every_notebook_is_run():
    assert sorted(path.stem for path in EXAMPLES.glob("*.ipynb")) == sorted(NOTEBOOKS)


def test_examples_are_there():
    assert NAMES == [
        "activation_sparsity",
        "custom_importance",
        "digits",
        "dynamic_sparse",
        "eager_pruner",
        "export",
        "folding",
        "masked_layers",
        "masks",
        "own_class",
        "plan_and_report",
        "save_and_load",
        "sparse_weights",
        "thinet",
        "traced_model",
    ]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("digits", "dynamic_sparse")])
def test_example_runs(name, capsys):
    load(name).main()
    printed, progress = capsys.readouterr()
    assert len(printed) > 100
    assert "\r" not in printed + progress


@pytest.mark.parametrize("name", NAMES)
def test_example_says_what_it_answers_and_how_to_start_it(name):
    text = load(name).__doc__
    assert text.splitlines()[0].count("?") >= 1
    assert f"python examples/{name}.py" in text


def test_digits(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # where bars are drawn
    found = load("digits").main(quick=True)
    printed, progress = capsys.readouterr()
    for row in (
        "accuracy before pruning",
        "accuracy right after pruning",
        "accuracy after the repair, no training",
        "accuracy after fine-tuning",
        "parameters",
        "MACs",
        "latency, batch 1 (ms)",
        "latency, batch 64 (ms)",
        "verification error",
    ):
        assert sum(line.startswith(row) for line in printed.splitlines()) == 1, row
    assert "How channels were chosen" in printed
    assert "MACs per channel" in printed, "the dependency report"
    assert "stage1.0" in printed
    assert "output of the model" in printed, "what is locked, and why"
    for bar in ("train", "fine-tune"):
        assert f"{bar}: 100%" in progress
    assert found["before"] > 0.9
    assert found["repaired"] > found["pruned"]
    assert found["repaired"] > 0.8
    assert found["tuned"] > 0.8
    assert found["macs"] <= 1 / 3
    assert found["error"] < 1e-9


def test_dynamic_sparse(capsys, tmp_path):
    runs = load("dynamic_sparse").main(quick=True, plot=str(tmp_path / "curves.png"))
    printed, progress = capsys.readouterr()
    assert progress == "", "bars are drawn on a terminal alone"
    for way in ("dense", "static sparse", "coactivation, per pair", "random, per channel"):
        assert sum(line.startswith(way + " ") for line in printed.splitlines()) == 1, way
    assert (tmp_path / "curves.png").read_bytes()[1:4] == b"PNG"
    sparsity = {way: {run.sparsity for run in its} for way, its in runs.items()}
    assert sparsity.pop("dense") == {0.0}
    assert len(set.union(*sparsity.values())) == 1, "all sparse ways are equally sparse"
    assert min(run.accuracy[-1] for run in runs["dense"]) > 0.7
