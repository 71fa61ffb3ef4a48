"""A training that is killed by the system, again and again, at random moments."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
import torch

from tests.follow.test_gradual import Run
from tests.processes import CONTEXT

ROUNDS = 40
KILLS = 20


def training(folder: str) -> None:
    """Train from the last checkpoint on. A new one is written whole or not at all, after each round."""
    torch.set_num_threads(1)
    run, number, file = Run(steps=12), 0, Path(folder, "checkpoint")
    if file.exists():
        head, _, rest = file.read_bytes().partition(b"\n")
        number = int(head)
        run.load(rest)
    for done in range(number, ROUNDS):
        run.train(done, done + 1)
        Path(folder, "new").write_bytes(b"%d\n" % (done + 1) + run.checkpoint())
        os.replace(Path(folder, "new"), file)
    torch.save(run.numbers(), Path(folder, "end"))


def ended(folder: Path, kills: int) -> int:
    """Run the training to its end, and kill it that often before. Returns the number of kills that it took."""
    folder.mkdir()
    moments = random.Random(0)
    done = 0
    while not (folder / "end").exists():
        process = CONTEXT.Process(target=training, args=(str(folder),), daemon=True)
        process.start()
        if done < kills:
            before = (folder / "checkpoint").stat().st_mtime_ns if (folder / "checkpoint").exists() else 0
            while process.is_alive() and (
                not (folder / "checkpoint").exists() or (folder / "checkpoint").stat().st_mtime_ns == before
            ):
                time.sleep(0.001)  # so that each life gets on
            time.sleep(moments.uniform(0.0, 0.1))
            if process.is_alive():
                process.kill()
                done += 1
        process.join()
    return done


@pytest.mark.slow
def test_a_training_that_is_killed_twenty_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    assert ended(tmp_path / "killed", KILLS) == KILLS
    assert ended(tmp_path / "whole", 0) == 0
    found, expected = (torch.load(tmp_path / name / "end") for name in ("killed", "whole"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
