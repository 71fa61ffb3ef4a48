"""Code that must run in a fresh process: forks of one process that has imported torch, or another module, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

_SERVER = """
import json, os, sys, {after}
pids = []
for folder, code, words in json.loads(sys.argv[1]):
    sys.stdout.flush(), sys.stderr.flush()
    pids.append((os.fork(), folder))
    if not pids[-1][0]:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["-c", *words]
        break
else:
    for pid, folder in pids:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with open(os.path.join(folder, "code"), "w") as file:
            file.write(str(status))
    sys.exit()
exec(code, {{"__name__": "__main__"}})
"""
"""The child ends as any process does that runs a script: by its last line, `sys.exit`, or a traceback."""


def ended_forks(
    codes: Sequence[tuple[str, Sequence[object]]], *, after: str = "torch"
) -> list[subprocess.CompletedProcess[str]]:
    """The ends of fresh processes, one for each code with the words of its `sys.argv`, all at once.

    after: the module that the process has imported from which they are forked.
    """
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place, str(number)) for number in range(len(codes))]
        for folder in folders:
            folder.mkdir()
        jobs = [(str(folder), code, [*map(str, words)]) for folder, (code, words) in zip(folders, codes, strict=True)]
        command = [sys.executable, "-c", _SERVER.format(after=after), json.dumps(jobs)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=240)
        read = [[(folder / name).read_text() for name in ("code", "stdout", "stderr")] for folder in folders]
        return [subprocess.CompletedProcess("fork", int(code), out, err) for code, out, err in read]
