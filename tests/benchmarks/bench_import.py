"""Seconds of `import fxprune` over those of `import torch`. Goal: at most 0.3.

Every import has a fresh process, the two in turns; counted is the time that the process was running, from the start of
the interpreter on. Compiled files are there: the first round, which may write them, does not count.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence

from tests.benchmarks.common import table

ROUNDS = 15
CODE = "import {}, time; print(time.process_time())"


def cpu_seconds(modules: str) -> float:
    """The processor time of a fresh interpreter that imports these modules, from its start."""
    command = [sys.executable, "-c", CODE.format(modules)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(rounds: int = ROUNDS) -> str:
    """The table: medians over the rounds, that of the difference over the differences within a round."""
    rows = [(cpu_seconds("torch"), cpu_seconds("torch, fxprune")) for _ in range(rounds + 1)][1:]
    torch, both = (statistics.median(column) for column in zip(*rows, strict=True))
    more = statistics.median(b - a for a, b in rows)
    headers = ("import torch (s)", "import torch, fxprune (s)", "fxprune over torch (s)")
    return table(headers, [(torch, both, more)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    print(measure(parser.parse_args(arguments).rounds))


if __name__ == "__main__":
    main()
