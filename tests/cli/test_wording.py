"""Errors and warnings of the package name arguments in Python; the command line names its options instead."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fxprune.cli import main, parser
from fxprune.cli.usage import Parser
from fxprune.cli.wording import OPTIONS, OTHER_NAMES, spoken

PACKAGE = Path(__file__).parents[2] / "fxprune"

PYTHON_ALONE = (
    "sparse pruner regularizers integrations cli _follow _gradual.py _gradual_options.py _in_place.py _distill.py "
    "notebooks.py plot.py report/drawing.py report/graphs.py rewrite/missing_graph.py depth/switched_off.py"
).split()
"""The parts whose texts no command can show."""

NO_OPTION = {
    "also": "inputs for another way through forward",
    "analysis": "an object",
    "average": "a variable in an example",
    "batches": "of a criterion that is made in Python",
    "callbacks": "an object",
    "channel_dim": "of a criterion that is made in Python",
    "dynamic_batch": "names of inputs: the option takes all",
    "ema": "an object",
    "example_inputs": "of a call in Python; --input where the command takes it",
    "format": "a text without an option that can be wrong",
    "holdout": "of fxprune.repair",
    "inputs": "of fxprune.repair",
    "kind": "of a criterion that is made in Python",
    "latency_table": "an object",
    "limit": "of a criterion that is made in Python",
    "methods": "a dict of inputs",
    "model_class": "a class",
    "noise": "of fxprune.repair",
    "optimizer": "an object",
    "p": "of a criterion that is made in Python",
    "process_group": "an object",
    "record": "a variable in an example",
    "recurse": "of accelerate",
    "repair_inputs": "a function",
    "ridge": "of fxprune.repair",
    "search": "a dict; --search-steps and --search-file for two of its keys",
    "save_original_format": "of transformers",
    "steps": "of fxprune.repair",
    "threshold": "of a criterion that is made in Python",
    "validate_args": "of a distribution of torch",
    "width": "an attribute of a layer",
    "model": "an object",
    "others": "of fxprune.expand",
}
"""Argument that a text names -> why it has no option."""

ARGUMENT = re.compile(r"(?<![\w.\-\"'/<(])([a-z_]+)=(?!=|call)")
CALL = re.compile(r"[\w.]+\((?:[^()\n]|\([^()\n]*\))*\)")


def texts():
    """(File and line, text) of all texts in the package that name an argument; 0.5 stands for what is filled in."""
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        if where.split("/")[0] in PYTHON_ALONE or where in PYTHON_ALONE:
            continue
        tree = ast.parse(path.read_text())
        skip = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                skip |= {id(part) for part in ast.walk(node)} - {id(node)}
        for node in ast.walk(tree):
            if id(node) in skip or not isinstance(node, ast.Constant | ast.JoinedStr):
                continue
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "0.5" for part in parts)
            if ARGUMENT.search(text) and "<" not in text:
                yield f"{where}:{node.lineno}", text


def options_of_all_commands():
    found = set()
    for name in parser.PARTS:
        made = Parser(prog=name)
        parser._add_all(name, made)
        found |= {option for action in made._actions for option in action.option_strings}
    return found


def test_every_argument_in_a_text_is_an_option_or_known_to_be_none():
    found = {name: where for where, text in texts() for name in ARGUMENT.findall(CALL.sub("call", text))}
    known = {*OPTIONS, *OTHER_NAMES, *NO_OPTION}
    assert {name: where for name, where in found.items() if name not in known} == {}
    assert len(found) > 20


def test_every_option_that_texts_are_given_exists():
    named = {f"--{name.replace('_', '-')}" for name in OPTIONS}
    assert named <= options_of_all_commands()
    assert set(OTHER_NAMES.values()) <= OPTIONS.keys()
    assert not {*OPTIONS, *OTHER_NAMES} & NO_OPTION.keys()


def test_no_text_names_an_argument_that_has_an_option():
    left = {}
    for where, text in texts():
        rest = re.sub(r"--(keep|ratio|counts) \S+=", "", CALL.sub("call", spoken(text)))
        names = set(ARGUMENT.findall(rest)) - NO_OPTION.keys() - {"path"}  # a path also leads to a file
        if names:
            left[where] = (names, spoken(text))
    assert left == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pass data=batches", "pass --data package.module:loader"),
        ("repair=True takes those of `data`", "--repair takes those of `data`"),
        ("pass `loss=lambda model, batch: f(model(batch[0]))`, or", "pass `--loss package.module:loss`, or"),
        ("drop strict=True to keep", "drop --strict to keep"),
        ('(prefer="class")', "(--prefer class)"),
        ('pass keep={"macs": 0.5, "params": 7}', "pass --keep macs=0.5 --keep params=7"),
        ("leave the group out: ignore=['conv1', 'head']", "leave the group out: --ignore conv1 --ignore head"),
        ('outputs=[("features", 0)]', "--outputs features.0"),
        ("budgets=(0.5, 0.3)", "--budgets 0.5,0.3"),
        ('round_to="auto" takes', "--round-to auto takes"),
        ("max_ratio=0.67 (1 group)", "--max-ratio 0.67 (1 group)"),
        ("scope='search'", "--scope search"),
        ("search={'steps': 0}", "--search-steps 0"),
        ('pass mode="outputs"', "pass --repair-mode outputs"),
        ("with masks= or ratio=", "with --masks or --ratio"),
        ("stream(memory='5 XB')", "--memory 5 XB"),
        ("layout=3 of_scope=4 x.scope=5 --scope=6", "layout=3 of_scope=4 x.scope=5 --scope=6"),
        ("convert(x, masks=masks_of(model))", "convert(x, masks=masks_of(model))"),
        ("a == b, keep==3", "a == b, keep==3"),
        ('path="eager" and path="small"', '--path eager and path="small"'),
    ],
)
def test_arguments_become_options(text, told):
    assert spoken(text) == told


def test_notes_of_a_report_as_text_name_options(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["prune", "tests.cli.models:normed", "-i", "2x7:int64<50", "-i", "scale=2x7x1", "-o", "small.safetensors"]
    asked = [*words, "--exact", "--ratio", "embed=0.5", "--seed", "0"]
    assert main(asked) == 3
    assert "note: the only group with a ratio is inexact (--exact)" in capsys.readouterr().out
    assert main([*asked, "--json"]) == 3
    assert "the only group with a ratio is inexact (exact=True)" in capsys.readouterr().out  # a program reads that


def test_an_error_of_the_package_names_options(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["prune", "tests.cli.models:net", "-i", "2x3x8x8", "-o", "small.safetensors"]
    assert main([*words, "--keep", "macs=0.5", "--depth"]) == 1
    err = capsys.readouterr().err
    assert "--depth needs data" in err
    assert "True" not in err
    assert "pass --repair package.module:loader, some hundred samples, or --data package.module:loader" in err
