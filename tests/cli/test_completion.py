"""The script that a shell reads to complete commands and options."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fxprune.cli import main
from fxprune.cli.commands import COMMANDS


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_script_has_every_command(shell, capsys):
    assert main(["--print-completion", shell]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(name in out for name in (*COMMANDS, "input", "keep", "dynamic-batch"))


def test_bash_completes_with_it(tmp_path, capsys):
    main(["--print-completion", "bash"])
    script = tmp_path / "fxprune.bash"
    script.write_text(capsys.readouterr().out)
    words = "COMP_WORDS=(fxprune prune --rat); COMP_CWORD=2; COMP_LINE='fxprune prune --rat'; COMP_POINT=19"
    calls = f'source {script}; {words}; _shtab_fxprune; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", calls], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["--ratio"], done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [(["bsh"], 'there is no completion for "bsh"\n  why  did you mean "bash"?'), ([], "known names: bash, zsh, tcsh")],
)
def test_other_shells_are_refused(words, text, capsys):
    assert main(["--print-completion", *words]) == 2
    assert text in capsys.readouterr().err


def test_without_shtab_the_next_step_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 1
    assert 'pip install "fxprune[completion]"' in capsys.readouterr().err
