"""Peak memory of `transform` over the bytes of the original's and the result's weights. Goal: at most 1.2.

Two ways to count, each in a fresh process: the bytes of tensors, from every allocation and release of torch's CPU
allocator as its profiler notes them; and the pages of the process, where the caches of Python and torch and whatever
the C library keeps count too. The latter is taken over the peak of a first call on a tiny model, which loads
the code. The original's weights count in both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import fxprune
from tests.benchmarks.common import in_fresh_process, model_and_input, table

NAMES = ("resnet50", "vgg16", "convnext_base")
WAYS = ("tensors", "pages")
RATIO = 0.3


def weight_bytes(model: nn.Module) -> int:
    """The bytes of parameters and buffers."""
    return sum(t.nbytes for t in itertools.chain(model.parameters(), model.buffers()))


def measure_one(name: str, verify: bool, way: str) -> tuple[int, int, int]:
    """Bytes of the original, of the result, and by how much the peak rose; to be run in a fresh process."""
    tiny = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    fxprune.transform(tiny, torch.randn(1, 3, 16, 16), ratio=RATIO, importance="l1", verify=verify)
    model, x = model_and_input(name)
    before = weight_bytes(model)

    def run() -> nn.Module:
        return fxprune.transform(model, x, ratio=RATIO, importance="l1", verify=verify)

    if way == "pages":
        start = current_pages()
        forget_peak()
        small = run()
        return before, weight_bytes(small), peak_pages() - start
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        small = run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return before, weight_bytes(small), max(itertools.accumulate(e.nbytes() for e in events))


def current_pages() -> int:
    """Resident bytes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def forget_peak() -> None:
    """Let the peak of resident memory start again from where it is."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_pages() -> int:
    """The highest number of resident bytes since `forget_peak`."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(names: Sequence[str] = NAMES) -> str:
    """The table."""
    rows = []
    for name, verify in itertools.product(names, (False, True)):
        flags = ("--verify",) if verify else ()
        cells: list[object] = [name, "on" if verify else "off"]
        ratios = []
        for way in WAYS:
            child = ("tests.benchmarks.bench_memory", "--child", name, "--way", way, *flags)
            before, after, rise = in_fresh_process(*child)
            cells += [before / 2**20, after / 2**20] if way == WAYS[0] else []
            ratios += [(before + rise) / 2**20, (before + rise) / (before + after)]
        rows.append((*cells, *ratios))
    headers = (
        *("model", "verify", "original (MiB)", "result (MiB)"),
        *("peak of tensors (MiB)", "over both", "peak of pages (MiB)", "over both"),
    )
    return table(headers, rows, ("", "", ".0f", ".0f", ".0f", ".2f", ".0f", ".2f"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="torchvision models")
    parser.add_argument("--child", action="store_true", help="measure one model in this process, print JSON")
    parser.add_argument("--verify", action="store_true", help="with --child")
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help="with --child")
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(measure_one(options.names[0], options.verify, options.way)))
    else:
        print(measure(options.names))


if __name__ == "__main__":
    main()
