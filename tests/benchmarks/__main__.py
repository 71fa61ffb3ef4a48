"""Run every benchmark and put its table into docs/benchmarks.md, between the markers that carry its name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks import (
    bench_analysis,
    bench_budgets,
    bench_dynamic,
    bench_experts,
    bench_export,
    bench_floor,
    bench_fold,
    bench_gpu,
    bench_graphs,
    bench_growth,
    bench_import,
    bench_large,
    bench_latency,
    bench_masked,
    bench_memory,
    bench_pass,
    bench_proof,
    bench_sparse,
    bench_streaming,
    bench_training,
    bench_transformers,
)


def _choosing() -> str:
    """The tables of accuracy at a budget; their measurements need packages that the other benchmarks do not."""
    from tests.benchmarks.choosing.tables import measure

    return measure()


BENCHMARKS: dict[str, Callable[[], str]] = {
    "pass": bench_pass.measure,
    "floor": bench_floor.measure,
    "analysis": bench_analysis.measure,
    "growth": bench_growth.measure,
    "import": bench_import.measure,
    "latency": bench_latency.measure,
    "budgets": bench_budgets.measure,
    "export": bench_export.measure,
    "fold": bench_fold.measure,
    "memory": bench_memory.measure,
    "proof": bench_proof.measure,
    "transformers": bench_transformers.measure,
    "sparse": bench_sparse.measure,
    "streaming": bench_streaming.measure,
    "large": bench_large.measure,
    "experts": bench_experts.measure,
    "masked": bench_masked.measure,
    "dynamic": bench_dynamic.measure,
    "graphs": bench_graphs.measure,
    "training": bench_training.measure,
    "gpu": bench_gpu.measure,
    "choosing": _choosing,
}
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def insert(page: str, name: str, text: str) -> str:
    """The page with `text` between the markers of `name`."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    head, found, rest = page.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{PAGE.name} lacks the markers {begin.strip()} and {end.strip()}")
    return f"{head}{begin}\n{text}\n\n{end}{tail}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="which benchmarks; default: all")
    options = parser.parse_args(arguments)
    for name in options.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        text = BENCHMARKS[name]()
        print(text, flush=True)
        PAGE.write_text(insert(PAGE.read_text(), name, text))


if __name__ == "__main__":
    main()
