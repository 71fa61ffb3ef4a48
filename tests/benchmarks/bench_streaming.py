"""`fxprune.stream` against `cp` and a plain script on the same disk: seconds, bytes per second, and peak memory.

A checkpoint of bfloat16 matrices in files of 0.5 GB (or --shard) is pruned to half of its hidden channels, whose
positions are random; the layers have the same random weights. Each run writes to a new directory, which is removed. The
page cache is warm for both. `cp` is measured alone, and with `sync` after it, since `stream` flushes its files. The
plain script loads a file, cuts its tensors, saves them, and flushes.

`--kills 50` makes 50 results instead, each by one or two runs of `stream` that are killed at random moments and one
that goes on, and compares their bytes with those of a run that was not killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fxprune
from tests.benchmarks.bench_memory import current_pages, forget_peak, peak_pages
from tests.benchmarks.common import in_fresh_process, seconds, table

WIDTH, HIDDEN = 4096, 8192
"""A layer has two matrices of this size: 134 MB in bfloat16."""

RATIO = 0.5


class Stack(nn.Module):
    """Pairs of matrices, as the MLPs of a transformer have them."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        wide = {"bias": False, "dtype": torch.bfloat16}
        self.up = nn.ModuleList(nn.Linear(WIDTH, HIDDEN, **wide) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(HIDDEN, WIDTH, **wide) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return x


def on_meta(layers: int) -> nn.Module:
    """The model without weights."""
    with torch.device("meta"):
        return Stack(layers).eval()


def written(folder: Path, layers: int, per_file: int) -> int:
    """Write a checkpoint with random weights; returns its bytes."""
    count, places, total = -(-layers // per_file), {}, 0
    up, down = (torch.randn(size).to(torch.bfloat16) for size in ((HIDDEN, WIDTH), (WIDTH, HIDDEN)))
    for number in range(count):
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        tensors = {}
        for layer in range(number * per_file, min(layers, (number + 1) * per_file)):
            tensors[f"up.{layer}.weight"] = up.clone()
            tensors[f"down.{layer}.weight"] = down.clone()
        save_file(tensors, folder / name)
        total += sum(tensor.nbytes for tensor in tensors.values())
        places |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return total


def streamed(source: str, plan: str, target: str, layers: int, workers: int) -> tuple[float, int, int]:
    """Seconds of a run, bytes that it wrote, and by how much its peak memory rose; in a fresh process."""
    model = on_meta(layers)
    before = current_pages()
    forget_peak()
    done = fxprune.stream(source, plan, target, model=model, workers=workers, progress=False)
    return done.seconds, done.bytes_written, peak_pages() - before


def cut_plainly(source: str, plan: str, target: str) -> tuple[float, int, int]:
    """The same of a script that has no thought for memory: a file is loaded, cut, saved and flushed."""
    removed = fxprune.Plan.load(plan).kept
    before = current_pages()
    forget_peak()
    start, wrote = time.perf_counter(), 0
    os.mkdir(target)
    for path in sorted(Path(source).glob("*.safetensors")):
        made = {}
        for name, tensor in load_file(path).items():
            for dim, kept in removed.get(name, {}).items():
                tensor = tensor.index_select(dim, torch.tensor(kept))
            made[name] = tensor.contiguous()
        save_file(made, Path(target) / path.name)
        with open(Path(target) / path.name, "rb") as file:
            os.fsync(file.fileno())
        wrote += sum(tensor.nbytes for tensor in made.values())
    return time.perf_counter() - start, wrote, peak_pages() - before


def prepared(folder: Path, layers: int, per_file: int) -> int:
    """Write a checkpoint and a plan for it; returns the bytes of the checkpoint."""
    (folder / "large").mkdir()
    total = written(folder / "large", layers, per_file)
    given = torch.zeros(1, WIDTH, dtype=torch.bfloat16, device="meta")
    small = fxprune.transform(on_meta(layers), given, ratio=RATIO, importance="random", seed=0)
    fxprune.record(small).plan.save(folder / "plan.json")
    return total


def compared(folder: Path, layers: int, per_file: int, rounds: int) -> list[list[Any]]:
    """A row for each way to write, of the median of several rounds, in turn."""
    total = prepared(folder, layers, per_file)
    times: dict[str, list[tuple[float, int, int]]] = {}
    for _ in range(rounds):
        for name, command in (("cp", "cp -r large copy"), ("cp, then sync", "cp -r large copy && sync -f copy")):
            took = seconds(lambda command=command: subprocess.run(command, shell=True, check=True, cwd=folder))
            times.setdefault(name, []).append((took, total, 0))
            shutil.rmtree(folder / "copy")
        paths = [str(folder / "large"), str(folder / "plan.json"), str(folder / "small")]
        found = in_fresh_process("tests.benchmarks.bench_streaming", "cut_plainly", *paths)
        times.setdefault("load, cut, save", []).append(tuple(found))
        shutil.rmtree(folder / "small")
        for workers in (1, 2):
            words = [*paths, layers, workers]
            took, wrote, rose = in_fresh_process("tests.benchmarks.bench_streaming", "streamed", *words)
            times.setdefault(f"stream, {workers} worker{'s' * (workers > 1)}", []).append((took, wrote, rose))
            shutil.rmtree(folder / "small")
    rows = []
    for name, found in times.items():
        took, wrote, rose = sorted(found)[len(found) // 2]
        memory = f"{max(r for *_, r in found) / 1e6:.0f} MB" if rose else ""
        rows.append(
            [name, f"{total / 1e9:.2f}", f"{wrote / 1e9:.2f}", f"{took:.2f}", f"{total / took / 1e9:.2f}", memory]
        )
    return rows


def killed(folder: Path, layers: int, per_file: int, results: int) -> str:
    """A sentence about runs that were killed: how many, and that the bytes at the end are those of a whole run.

    Each result is made by one or two runs that are killed, and one that goes on to the end.
    """
    prepared(folder, layers, per_file)
    paths = [str(folder / "large"), str(folder / "plan.json")]
    words = [sys.executable, "-m", "tests.benchmarks.bench_streaming", "streamed", *paths]
    took = in_fresh_process("tests.benchmarks.bench_streaming", "streamed", *paths, str(folder / "whole"), layers, 2)[0]
    expected = sums(folder / "whole")
    shutil.rmtree(folder / "whole")
    random.seed(0)
    kills = went_on = 0
    for number in range(results):
        for _ in range(1 + number % 2):
            process = subprocess.Popen([*words, str(folder / "small"), str(layers), "2"], stdout=subprocess.PIPE)
            assert process.stdout is not None
            process.stdout.readline()  # it begins
            time.sleep(random.uniform(0, took))
            process.kill()
            process.communicate()
            kills += process.returncode != 0
            if complete(folder / "small"):  # it ended just before it was killed
                break
        went_on += bool(list((folder / "small").glob("*.safetensors")))
        if not complete(folder / "small"):
            in_fresh_process("tests.benchmarks.bench_streaming", "streamed", *paths, str(folder / "small"), layers, 2)
        assert sums(folder / "small") == expected, "other bytes, or something is left"
        shutil.rmtree(folder / "small")
    return (
        f"{kills} runs were killed; {results} results were finished after them, {went_on} with files of a killed run, "
        "each with the bytes of a whole run and no file beside them"
    )


def complete(folder: Path) -> bool:
    """True for a directory with weights and without the notes of a run that has not ended."""
    return bool(list(folder.glob("*.safetensors"))) and not list(folder.glob(".*"))


def sums(folder: Path) -> dict[str, str]:
    """File -> the hash of its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        with open(path, "rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def measure(gigabytes: float = 2.1, shard: float = 0.5, rounds: int = 3, kills: int = 0) -> str:
    """The table of a checkpoint of this size; or the sentence about kills."""
    layer = 2 * WIDTH * HIDDEN * 2 / 1e9
    layers, per_file = round(gigabytes / layer), max(1, round(shard / layer))
    with tempfile.TemporaryDirectory() as folder:
        if kills:
            return killed(Path(folder), layers, per_file, kills)
        rows = compared(Path(folder), layers, per_file, rounds)
    return table(["way", "GB read", "GB written", "seconds", "GB/s read", "memory"], rows)


def main(words: Sequence[str] | None = None) -> None:
    """Print the table. `--gigabytes 12 --shard 5` takes 25 GB of disk."""
    words = sys.argv[1:] if words is None else list(words)
    if words[:1] == ["streamed"]:
        source, plan, target, layers, workers = words[1:]
        print("it begins", flush=True)
        print(json.dumps(streamed(source, plan, target, int(layers), int(workers))))
        return
    if words[:1] == ["cut_plainly"]:
        print(json.dumps(cut_plainly(*words[1:])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--shard", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args(words)
    print(measure(options.gigabytes, options.shard, options.rounds, options.kills))


if __name__ == "__main__":
    main()
