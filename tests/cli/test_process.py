"""Every exit code through a real process: stdout is for machines, stderr for people, and there is no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fxprune
from fxprune.cli import main
from tests.forks import ended_forks

ROOT = Path(__file__).parents[2]
FXPRUNE = (sys.executable, "-m", "fxprune")
NET = ("tests.cli.models:net", "--input", "2x3x8x8", "--seed", "0")

INTERRUPTIBLE = (
    sys.executable,
    "-c",
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "runpy.run_module('fxprune', run_name='__main__', alter_sys=True)",
)
"""`python -m fxprune`, also where whoever started the tests ignores Ctrl-C, as a shell does in the background."""


def started(*words, command=FXPRUNE):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, words)], cwd=ROOT, env=environment, **streams)


def ended(process):
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return process.returncode, out, err


def test_every_exit_code(tmp_path):
    small = tmp_path / "small.safetensors"
    code, out, err = ended(started("prune", *NET, "-r", "0.5", "-o", small, "--json"))
    assert code == 0
    told = json.loads(out)  # text printed by the model's own code is on stderr
    assert (told["kind"], told["exact"], told["files"]["output"]) == ("record", True, str(small))
    assert told["error"] < 1e-12
    assert err.splitlines()[:3] == ["making tests.cli.models:net", "noise on stdout", "pruning"]
    assert load_file(small)["conv1.weight"].shape == (8, 3, 3, 3)

    nothing = tmp_path / "nothing.safetensors"
    fixed = ("tests.cli.models:fixed", "--input", "1x4", "-r", "0.5", "-o", nothing)
    others = {
        1: ("inspect", "tests.cli.models:broken", "--input", "1x3"),
        2: ("prnue", *NET),
        3: ("prune", *fixed),
        4: ("verify", *NET, small, "--seed", "1"),
    }
    module = "import runpy; runpy.run_module('fxprune', run_name='__main__', alter_sys=True)"  # as python -m fxprune
    ends = dict(zip(others, ended_forks([(module, words) for words in others.values()], after="fxprune"), strict=True))
    assert {code: done.returncode for code, done in ends.items()} == {code: code for code in others}
    found = {code: (code, done.stdout, done.stderr) for code, done in ends.items()}
    assert not any("Traceback" in err for _, _, err in found.values())
    assert found[1][1:] == (
        "",
        'making tests.cli.models:broken\nerror: "tests.cli.models:broken" raised an error\n'
        f"  at   models.py:{line_of('raise ValueError')}\n  why  ValueError: this model is broken\n"
        "  do   --debug shows all of it\n",
    )
    assert found[2][1:] == (
        "",
        'error: there is no command "prnue"\n  why  did you mean "prune"?\n'
        "  do   `fxprune --help` lists the commands\n",
    )
    assert found[3][1].startswith("layer    shape    params    MACs\n")
    warning, last = found[3][2].splitlines()[-2:]
    assert warning.startswith("warning: nothing was removed: ")
    assert last == "nothing was written"
    assert not nothing.exists()
    assert found[4][1].startswith("wrong: relative error ")


def line_of(text):
    lines = (Path(__file__).parent / "models.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGINT to send")
def test_ctrl_c_leaves_one_line_and_no_file(tmp_path):
    mark, small = tmp_path / "started", tmp_path / "small.safetensors"
    words = ("prune", "tests.cli.models:slow", "--arg", f"mark={mark}", "-i", "1x4", "-r", "0.5", "-o", small)
    process = started(*words, command=INTERRUPTIBLE)
    try:
        deadline = time.monotonic() + 100
        while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert mark.exists()
        process.send_signal(signal.SIGINT)
        code, out, err = ended(process)
    finally:
        process.kill()
        process.wait()
    assert (code, out) == (130, "")
    assert err == "making tests.cli.models:slow\ninterrupted; files that are not complete were not written\n"
    assert os.listdir(tmp_path) == ["started"]


def test_a_reader_that_goes_away_is_no_error():
    process = started("--help")
    process.stdout.close()
    assert process.wait(timeout=120) in (0, 141)
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"fxprune {fxprune.__version__}, torch {torch.__version__}\n", "")


def test_the_script_is_main():
    line = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("fxprune = "))
    assert EntryPoint("fxprune", line.partition(" = ")[2].strip('"'), "console_scripts").load() is main
