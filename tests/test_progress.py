"""Long work speaks on a terminal, and is quiet elsewhere; the log has every long step."""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune import progress
from fxprune.criteria import apoz_importance

pytestmark = pytest.mark.filterwarnings("ignore:the relative squared error of the outputs")

PACKAGE = Path(fxprune.__file__).parent
X = torch.randn(10, 3)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def score(model: nn.Module) -> float:
    with torch.no_grad():
        return float(model(X).sum())


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The stderr of a terminal from now on, in which every long step is slow enough for a bar."""
    made = Terminal()
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(sys, "stderr", made)
    return made


def everything(folder: Path) -> None:
    """All kinds of long work, on a small model."""
    model = net()
    analysis = fxprune.analyze(model, X)
    small = analysis.transform(ratio=0.5, importance="obs", data=[X])
    fxprune.verify(model, small, X)
    fxprune.repair(small, model, [X])
    fxprune.export(small, folder / "small.pt2", X)
    fxprune.summary(model, small, X, rounds=2)
    fxprune.sensitivity(model, X, score, ratios=[0.5])
    fxprune.pareto(model, X, score, budgets=[0.5])
    analysis.branches()
    apoz_importance(model, [X])


def test_nothing_is_written_into_a_pipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    everything(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_bars_are_drawn_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    monkeypatch.setattr(progress, "_watch", lambda what, done: stderr.write(f"{what}\n"))
    everything(tmp_path)
    shown = stderr.getvalue()
    for what in ("analysis (eager)", "proof", "export", "comparison of the file", "search for branches", "latency"):
        assert what in shown
    for what in ("repair: 100%", "sensitivity: 100%", "pareto: 100%", "activation statistics: 100%"):
        assert what in shown


def test_a_step_that_is_slow_shows_its_seconds_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    with progress.long_step("work"):
        began = time.monotonic()
        while "work [" not in stderr.getvalue() and time.monotonic() - began < 20:
            time.sleep(0.05)
    drawn = re.findall(r"work \[(\d\d:\d\d)\]", stderr.getvalue())
    assert drawn[0] == "00:00"
    assert stderr.getvalue().endswith("\r")
    assert stderr.getvalue().split("\r")[-2].strip() == "", "the bar is wiped out"


def test_a_step_that_is_fast_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    monkeypatch.setattr(progress, "DELAY", 5.0)
    began = time.monotonic()
    with progress.long_step("work"):
        pass
    assert stderr.getvalue() == ""
    assert time.monotonic() - began < 2


def test_the_log_has_the_steps_and_is_silent_by_default(caplog: pytest.LogCaptureFixture) -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("fxprune").handlers)
    with caplog.at_level(logging.INFO, "fxprune"):
        fxprune.transform(net(), X, ratio=0.5)
    texts = [record.getMessage() for record in caplog.records if record.name == "fxprune"]
    assert [re.sub(r"\d+\.\d s", "0 s", text) for text in texts] == ["analysis (eager) took 0 s", "proof took 0 s"]


def test_a_step_that_raises_is_in_the_log_and_leaves_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fxprune"), pytest.raises(ValueError, match="no"), progress.long_step("work"):
        raise ValueError("no")
    assert "work took" in caplog.text
    assert not [thread for thread in progress.threading.enumerate() if thread.name == "fxprune progress"]


def test_every_bar_is_made_in_one_place() -> None:
    used = [path for path in PACKAGE.rglob("*.py") if re.search(r"\btqdm\(|import tqdm", path.read_text())]
    assert [path.name for path in used] == ["progress.py"]


@pytest.mark.parametrize("stream", [None, object()])
def test_a_program_without_a_stderr_runs(stream: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert not progress.shown()
    assert list(progress.bar([1, 2], what="work", unit="one")) == [1, 2]
