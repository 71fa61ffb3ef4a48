"""Several processes of one test, which talk by gloo on this machine and end before a deadline."""

from __future__ import annotations

import datetime
import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

TIMEOUT = datetime.timedelta(seconds=20)
"""The time for which a process waits for the others."""

CONTEXT = multiprocessing.get_context("forkserver")  # forks of a server that has imported everything once
CONTEXT.set_forkserver_preload(["torch.distributed.fsdp", "torch.distributed.checkpoint", "tests.follow.nets"])


def run_together(
    function: Callable[..., Any], count: int, *args: Any, seconds: float = 240, lost: tuple[int, ...] = ()
) -> list[Any]:
    """The results of a function in each of some processes of one group, called with the rank and `args`.

    seconds: after this time all are killed. lost: the ranks that end without a result.

    Raises `AssertionError` with the traceback of the first process that raises, or if the time is over.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = [
            CONTEXT.Process(target=_run, args=(function, rank, count, folder, args), daemon=True)
            for rank in range(count)
        ]
        for process in work:
            process.start()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end and any(process.is_alive() for process in work) and not _failed(folder, count):
                time.sleep(0.02)
            failed = _failed(folder, count)
            assert not failed, failed
            late = [rank for rank, process in enumerate(work) if process.is_alive()]
            assert not late, f"processes {late} have not ended after {seconds} s"
        finally:
            for process in work:
                process.kill()
                process.join()
        failed = _failed(folder, count)
        assert not failed, failed
        return [None if rank in lost else pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(count)]


def _failed(folder: str, count: int) -> str:
    """The traceback of each process that has raised."""
    found = [path for rank in range(count) if (path := Path(folder, f"{rank}.error")).exists()]
    return "\n".join(f"process {path.stem}: {path.read_text()}" for path in found)


def _run(function: Callable[..., Any], rank: int, count: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        store = f"file://{folder}/store"
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=TIMEOUT)
        Path(folder, str(rank)).write_bytes(pickle.dumps(function(rank, *args)))
        distributed.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.error").write_text(traceback.format_exc())
        raise
