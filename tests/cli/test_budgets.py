"""Budgets on the command line: their exit code, and options that would be without effect."""

from __future__ import annotations

import pytest

from fxprune.cli import main
from tests.cli.test_commands import NET


def test_a_budget_that_is_not_met_has_an_exit_code_of_its_own(tmp_path, capsys):
    file = str(tmp_path / "small.safetensors")
    assert main(["prune", *NET, "--keep", "macs=0.5", "-o", file]) == 0
    assert main(["prune", *NET, "--keep", "macs=0.001", "--max-ratio", "0.5", "-o", file]) == 5
    assert "the budget is not met" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--ratio", "0.5", "--scope", "global"], "--scope is without effect"),
        (["--keep", "macs=0.5", "--ratio", "0.5"], "exactly one of"),
        (["--keep", "macs"], "no KEY=AMOUNT"),
        (["--keep", "macs=0.5", "--keep", "macs=0.4"], "given twice"),
        (["--keep", "watts=0.5"], "no such budget"),
        (["--counts", "conv1=0"], "no PATTERN=N"),
        (["--keep", "macs=0.5", "--max-ratio", "0"], "no share in"),
        (["--keep", "macs=0.5", "--scope", "all"], "scope"),
    ],
)
def test_wrong_budgets_are_refused(words, text, tmp_path, capsys):
    assert main(["prune", *NET, *words, "-o", str(tmp_path / "small.safetensors")]) in (1, 2)
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
