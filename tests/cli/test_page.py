"""docs/cli.md: every command is run, and prints what the page says. `python -m tests.cli.test_page` rewrites it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

from fxprune.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def printed(line):
    """The text that a command prints, as in a terminal, and its exit code."""
    program, *words = shlex.split(line)
    assert program == "fxprune", line
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        code = main(words)
    return screen.getvalue(), code


def commands_of(text):
    """The command lines of a page."""
    blocks = (block for language, block in BLOCK.findall(text) if language == "text" and block.startswith("$ "))
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def written_anew(text, folder):
    """The page with what its commands print now, all of them run one after the other in `folder`/project."""
    project = Path(folder) / "project"  # the report names it
    project.mkdir()
    os.chdir(project)
    [source] = [block for language, block in BLOCK.findall(text) if language == "python"]
    Path("nets.py").write_text(source)
    code = None

    def rerun(match):
        nonlocal code
        if match[1] != "text" or not match[2].startswith("$ "):
            return match[0]
        lines = []
        for line in (line[2:] for line in match[2].splitlines() if line.startswith("$ ")):
            output, code = (f"{code}\n", code) if line == "echo $?" else printed(line)
            lines += [f"$ {line}", *(line.rstrip() for line in output.splitlines())]
        return "```text\n" + "\n".join(lines) + "\n```"

    return BLOCK.sub(rerun, text)


def tidy(text):
    """Without what depends on the machine: roundings and the sizes of files."""
    return re.sub(r"\d+ bytes", "# bytes", re.sub(r"\d\.\de[-+]\d\d", "#", text)).splitlines()


def test_the_page_shows_what_commands_print(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = PAGE.read_text()
    commands = {"inspect", "prune", "verify", "export", "summary", "sensitivity", "pareto", "diff"}
    assert {line.split()[1] for line in commands_of(text)} >= commands
    try:
        assert tidy(written_anew(text, tmp_path)) == tidy(text), "run `python -m tests.cli.test_page`"
    finally:
        sys.modules.pop("nets", None)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        page = written_anew(PAGE.read_text(), folder)
        os.chdir(folder)
        PAGE.write_text(page)
