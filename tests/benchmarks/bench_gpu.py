"""The pass, its proof and its result on a CUDA device; says so where there is none.

The first table has the seconds of `transform` without and with the proof, model and weights on the device. The second
one has the latency of the small model over that of one written by hand and over the original, as it is and compiled, in
half precision at batch 16. The third one has products with weights of which two of every four are zero. All that is
compared runs in turns; the device is waited for before each reading of the clock.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import fxprune
from fxprune.sparse import sparsify
from tests.benchmarks.bench_latency import by_hand
from tests.benchmarks.common import interleaved, median_ratio, model_and_input, table
from tests.support import relative_error

NAMES = ("resnet50", "mobilenet_v2")
SIZES = ((1024, 1024), (4096, 4096), (11008, 4096))
RATIO = 0.5
NO_DEVICE = "There was no CUDA device where this was run: nothing is measured."


def waited(function: Callable[[], Any], device: str) -> Callable[[], None]:
    """The function, which returns when the device has done what it was told."""

    def call() -> None:
        function()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def passes(names: Sequence[str], device: str, rounds: int) -> str:
    """The table of the pass and its proof."""
    rows = []
    for name in names:
        model, x = (each.to(device) for each in model_and_input(name))

        def prune(verify: bool, model: nn.Module = model, x: torch.Tensor = x) -> None:
            fxprune.transform(model, x, ratio=RATIO, importance="l1", verify=verify)

        ways = {str(verify): waited(lambda verify=verify: prune(verify), device) for verify in (False, True)}
        off, on = (statistics.median(times) for times in interleaved(ways, rounds).values())
        rows.append((name, off, on))
    return table(("model", "transform, verify off (s)", "on (s)"), rows)


def latencies(names: Sequence[str], device: str, rounds: int, batch: int = 16) -> str:
    """The table of the result, as it is and compiled."""
    rows = []
    dtype = torch.float16 if device == "cuda" else torch.float32
    for name in names:
        original, x = (each.to(device) for each in model_and_input(name, batch))
        small = fxprune.transform(original, x[:1], ratio=RATIO, importance="l1", round_to=8)
        models = {"original": original, "by hand": by_hand(original, small), "small": small}
        x = x.to(dtype)
        for compiled in (False, True):
            calls = {key: model.to(dtype) for key, model in models.items()}
            forwards = {key: torch.compile(call) if compiled else call for key, call in calls.items()}
            with torch.inference_mode():
                assert relative_error(forwards["small"](x).float(), forwards["by hand"](x).float()) < 1e-2
                waiting = {key: waited(functools.partial(call, x), device) for key, call in forwards.items()}
                times = interleaved(waiting, rounds)
            medians = [1000 * statistics.median(some) for some in times.values()]
            over = [median_ratio(times["small"], times[key]) for key in ("by hand", "original")]
            rows.append((name, "compiled" if compiled else "as it is", *medians, *over))
    headers = ("model", "run", "original (ms)", "by hand (ms)", "small (ms)", "small / by hand", "small / original")
    return table(headers, rows, ("", "", ".2f", ".2f", ".2f", ".3f", ".3f"))


def products(device: str, rounds: int, batch: int = 512) -> str:
    """The table of layers with two of every four weights, which only CUDA multiplies with."""
    rows = []
    for outputs, inputs in SIZES:
        layer = nn.Linear(inputs, outputs, bias=False, device=device, dtype=torch.float16)
        with torch.no_grad():
            least = layer.weight.view(-1, 4).abs().argsort(1)[:, :2]
            layer.weight.view(-1, 4).scatter_(1, least, 0)
        sparse = sparsify(layer, layout="semi_structured")
        x = torch.randn(batch, inputs, device=device, dtype=torch.float16)
        with torch.inference_mode():
            assert relative_error(sparse(x).float(), layer(x).float()) < 1e-2
            layers = {"dense": layer, "2:4": sparse}
            calls = {key: waited(functools.partial(each, x), device) for key, each in layers.items()}
            times = interleaved(calls, rounds)
        medians = [1000 * statistics.median(some) for some in times.values()]
        rows.append((f"{outputs} x {inputs}", *medians, median_ratio(times["dense"], times["2:4"])))
    return table(("weight", "dense (ms)", "2:4 (ms)", "times faster"), rows, ("", ".3f", ".3f", ".2f"))


def measure(names: Sequence[str] = NAMES, device: str = "cuda", rounds: int = 10) -> str:
    """The tables under the name of the device, or a sentence where there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        return NO_DEVICE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [passes(names, device, rounds), latencies(names, device, rounds)]
        if device == "cuda":
            parts.append(products(device, rounds))
    called = torch.cuda.get_device_name() if device == "cuda" else device
    return "\n\n".join([f"Measured on {called}, torch {torch.__version__}.", *parts])


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="torchvision models of Conv2d, BatchNorm2d and Linear")
    parser.add_argument("--device", default="cuda", help='"cpu" tries the script')
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args(arguments)
    print(measure(options.names, options.device, options.rounds))


if __name__ == "__main__":
    main()
