"""A run that is killed at any moment leaves nothing half-written, and the next one gives the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fxprune
from fxprune.files import remove_litter, replacing
from tests.streaming.checkpoints import content

SHARDS, ROWS = 6, 600

_STREAMING = """
import os, sys, torch
import fxprune
class Rows(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ModuleList(torch.nn.Linear(ROWS, ROWS) for _ in range(SHARDS))
    def forward(self, x):
        for part in self.parts:
            x = part(x).relu()
        return x
with torch.device("meta"):
    model = Rows()
plan = fxprune.Plan.load(sys.argv[2])
for target in sys.stdin:
    child = os.fork()
    if child == 0:
        fxprune.stream(sys.argv[1], plan, target.strip(), model=model, shard_size=2000000, progress=False, workers=1)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
""".replace("ROWS", str(ROWS)).replace("SHARDS", str(SHARDS))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, bytes]]:
    """A checkpoint of several files, a plan, and the files of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("killed")
    scope: dict[str, Any] = {}
    exec(_STREAMING.partition("with torch")[0], scope)
    model, source = scope["Rows"](), folder / "large"
    source.mkdir()
    places = {}
    for number in range(SHARDS):
        name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = {f"parts.{number}.{n}": t for n, t in model.parts[number].state_dict().items()}
        places |= dict.fromkeys(part, name)
        save_file(part, source / name)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    small = fxprune.transform(model, torch.randn(2, ROWS), ratio=0.3, verify=False)
    fxprune.record(small).plan.save(folder / "plan.json")
    plan = fxprune.Plan.load(folder / "plan.json")
    fxprune.stream(source, plan, folder / "whole", model=model, shard_size=2000000, progress=False)
    return source, folder / "plan.json", content(folder / "whole")


def check_kills(job: Any, folder: Path, seed: int, kills: int) -> None:
    """Kill runs at random moments, and see after each that what is there is whole; then let one finish."""
    choose, whole = random.Random(seed), job[2]
    words = [sys.executable, "-c", _STREAMING, str(job[0]), str(job[1])]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        for number in range(kills):
            print(folder / "small", file=parent.stdin, flush=True)
            child = int(parent.stdout.readline())
            time.sleep(choose.random() * 0.3)
            with contextlib.suppress(ProcessLookupError):  # it has finished
                os.kill(child, signal.SIGKILL)
            assert parent.stdout.readline() == "ended\n"
            found = content(folder / "small") if (folder / "small").exists() else {}
            for name, data in found.items():
                assert name.startswith(".") or data == whole[name], f"{name} after kill {number}"
            if found.keys() == whole.keys():  # it was faster than the kill
                shutil.rmtree(folder / "small")
    plan = fxprune.Plan.load(job[1])
    scope: dict[str, Any] = {}
    exec(_STREAMING.partition("with torch")[0], scope)
    fxprune.stream(job[0], plan, folder / "small", model=scope["Rows"](), shard_size=2000000, progress=False)
    assert content(folder / "small") == whole


@pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")
def test_killed_runs_end_with_the_same_bytes(job: Any, tmp_path: Path) -> None:
    check_kills(job, tmp_path, seed=0, kills=4)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals and locks of POSIX")
def test_fifty_killed_runs_end_with_the_same_bytes(job: Any, tmp_path: Path) -> None:
    check_kills(job, tmp_path, seed=1, kills=50)


def test_finished_files_are_not_written_again(job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scope: dict[str, Any] = {}
    exec(_STREAMING.partition("with torch")[0], scope)
    model, plan, target = scope["Rows"](), fxprune.Plan.load(job[1]), tmp_path / "small"
    how: dict[str, Any] = {"model": model, "shard_size": 2000000, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr("fxprune.streaming.run._write_others", lambda *_: 1 / 0)  # all files are there by then
        with pytest.raises(ZeroDivisionError):
            fxprune.stream(job[0], plan, target, **how)
    first = sorted(target.glob("*.safetensors"))
    first.pop().unlink()
    times = [path.stat().st_mtime_ns for path in first]
    other = fxprune.Plan.load(job[1])
    with pytest.raises(fxprune.FileError, match="holds weights already"):
        fxprune.stream(job[0], other, target, **{**how, "shard_size": 3000000})
    done = fxprune.stream(job[0], plan, target, **how)
    assert done.reused == tuple(path.name for path in first)
    assert [path.stat().st_mtime_ns for path in first] == times
    assert content(target) == job[2]


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_litter_of_killed_writers_is_removed_and_files_that_are_written_stay(tmp_path: Path) -> None:
    left = tmp_path / ".plan.json.0123456789ab.tmp"
    other = tmp_path / ".other.json.0123456789ab.tmp"
    for path in (left, other):
        path.write_text("half")
    with replacing(tmp_path / "plan.json") as file:
        assert not left.exists()
        assert other.exists()
        file.write(b"whole")
        assert remove_litter(tmp_path) == (other.name,)
        assert len(list(tmp_path.iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("sums_before", [True, False])
def test_checksums_certify_no_file_that_was_damaged(
    job: Any, sums_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope: dict[str, Any] = {}
    exec(_STREAMING.partition("with torch")[0], scope)
    how: dict[str, Any] = {"model": scope["Rows"](), "shard_size": 2000000, "progress": False}
    plan, target = fxprune.Plan.load(job[1]), tmp_path / "small"
    with monkeypatch.context() as patch:
        patch.setattr("fxprune.streaming.run._write_others", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            fxprune.stream(job[0], plan, target, checksum=sums_before, **how)
    first, *others = sorted(target.glob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    done = fxprune.stream(job[0], plan, target, checksum=True, **how)
    assert done.reused == (tuple(path.name for path in others) if sums_before else ())
    found = content(target)
    lines = found.pop("SHA256SUMS").decode().splitlines()
    assert found == job[2]
    assert lines == [f"{hashlib.sha256(found[name]).hexdigest()}  {name}" for name in done.files]
