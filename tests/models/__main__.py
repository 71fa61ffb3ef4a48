"""Run the register of real models and write docs/models.md: `python -m tests.models [family ...] [options]`.

Each model runs in a process of its own, forked from one that has imported the packages, with one thread, a limit of
time and one of memory. Results are lines of JSON in a file, one per model; a model that is run again replaces its
line, so that a few can be repeated and the page still tells about all.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from tests.models import zoo
from tests.models.measure import behaves, brief, measure, passed
from tests.models.page import page

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
RESULTS = Path(tempfile.gettempdir()) / "fxprune_models.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)  # before the first fork: a pool of threads does not survive it
    every = zoo.entries()
    wanted = options.families or zoo.installed()
    chosen = {k: e for family in wanted for k, e in every.items() if e.family == family}
    if options.only:
        chosen = {k: e for k, e in chosen.items() if any(fnmatch.fnmatch(k, f"*{glob}") for glob in options.only)}
    if options.failed:
        before = read(options.results)
        chosen = {k: e for k, e in chosen.items() if not good(before.get(k, {}))}
    if not options.page_only:
        run_all(list(chosen.values()), options)
    results = read(options.results)
    if options.output:
        Path(options.output).write_text(page([results[k] for k in every if k in results]))
    return int(not all(good(results.get(k, {})) for k in chosen))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.models", description=__doc__)
    parser.add_argument("families", nargs="*", help="of " + ", ".join(zoo.FAMILIES) + "; all by default")
    parser.add_argument("--only", action="append", metavar="GLOB", help="models whose family/name ends like this")
    parser.add_argument("--failed", action="store_true", help="only models whose last result was not good")
    parser.add_argument("--behaviour", action="store_true", help="only the behaviour; writes no page")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600, help="seconds per model")
    parser.add_argument("--memory", type=float, default=10, help="GiB of address space per model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="lines of JSON, merged (%(default)s)")
    parser.add_argument("--output", default=str(PAGE), help="the page to write, '' for none (%(default)s)")
    parser.add_argument("--page-only", action="store_true", help="write the page from the results that are there")
    options = parser.parse_args(arguments)
    if options.behaviour:
        options.output = ""
    for family in options.families:
        if family not in zoo.FAMILIES:
            parser.error(f"no family {family}")
    return options


def good(result: dict[str, Any]) -> bool:
    """Equal to the masked original in numbers and in behaviour; with all groups it runs, where that was tried."""
    runs = not {"failure", "all_failure"} & set(result) and result.get("all_shapes", True)
    return bool(runs) and passed(result) and behaves(result)


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The last result of every model, by key."""
    if not path.exists():
        return {}
    return {result["key"]: result for result in map(json.loads, path.read_text().splitlines())}


def run_all(
    entries: list[zoo.Entry], options: argparse.Namespace, measured: Callable[[zoo.Entry], dict[str, Any]] | None = None
) -> None:
    """Some processes at a time; a line of JSON and a line of text as each one ends.

    measured: a function from an entry to its result; by default `measure`.
    """
    context = multiprocessing.get_context("fork")
    waiting, running = entries[::-1], {}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            entry = waiting.pop()
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=child, args=(entry, theirs, options, measured), daemon=True)
            process.start()
            theirs.close()
            running[ours] = (entry, process, time.monotonic())
        ready = wait(list(running), timeout=1)
        for pipe, (entry, process, started) in list(running.items()):
            seconds = time.monotonic() - started
            if pipe in ready:
                result = receive(pipe, process)
            elif seconds > options.timeout:
                process.kill()
                process.join()
                result = {"failure": f"stopped after {options.timeout:g} s"}
            else:
                continue
            pipe.close()
            del running[pipe]
            result = {"key": entry.key, "note": entry.note, **result, "total_seconds": seconds}
            with options.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(line(result), flush=True)


def receive(pipe: Connection, process: Any) -> dict[str, Any]:
    try:
        result = dict(pipe.recv())
    except EOFError:
        process.join()
        return {"failure": f"the process ended with {process.exitcode}"}
    process.join()
    return result


def child(entry: zoo.Entry, pipe: Connection, options: argparse.Namespace, measured: Any) -> None:
    limit = int(options.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        try:
            pipe.send(measured(entry) if measured else measure(entry, behaviour=options.behaviour))
        except Exception as error:
            pipe.send({"failure": f"not measured: {brief(error)}"})


def line(result: dict[str, Any]) -> str:
    state = "ok" if good(result) else "--"
    figures = [f"{name} {result[name]:.3g}" for name in ("removed", "error", "effect", "all_error") if result.get(name)]
    told = [str(result[name])[:150] for name in ("failure", "all_failure", "behaviour") if result.get(name)]
    return f"{state} {result['key']} {result.get('path', '')} " + ", ".join(
        [*figures, f"{result['total_seconds']:.0f} s", *told]
    )


if __name__ == "__main__":
    importlib.import_module("tests.models.measure")
    sys.exit(main())
