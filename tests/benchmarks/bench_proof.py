"""Seconds and peak memory of `transform` with and without the proof, and the proof over the forwards that it runs.

Times are processor time of one thread, the median of some rounds in one process. The peak is that of the whole process
(`ru_maxrss`), which runs `transform` once, so the packages and the original are in it; each gets a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import fxprune
from fxprune.proof.deterministic import deterministic
from tests.benchmarks.common import in_fresh_process, model_and_input, processor_seconds, table
from tests.support import call, torchvision

CASES = (("resnet50", "eager"), ("resnet50", "fx"), ("swin_t", "eager"), ("gpt2", "eager"))
RATIO = 0.3


def build(name: str) -> tuple[nn.Module, Any]:
    """A model and its inputs: an image for models of torchvision, 128 tokens for GPT-2."""
    if name != "gpt2":
        return model_and_input(name)
    torchvision()  # before transformers imports it
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    tokens = {"vocab_size": 8000, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(n_embd=384, n_layer=6, n_head=6, **tokens)).eval()
    return model, {"input_ids": torch.randint(0, 8000, (1, 128)), "use_cache": False}


def prune(model: nn.Module, inputs: Any, path: str, verify: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fxprune.transform(model, inputs, ratio=RATIO, importance="l1", path=path, verify=verify)


def measure_times(name: str, path: str, rounds: int) -> tuple[float, float, float]:
    """Seconds without and with the proof, and of one forward of each model in float64."""
    model, inputs = build(name)
    small = prune(model, inputs, path, verify=False)
    doubles = [copy.deepcopy(each).double() for each in (model, small)]
    given = inputs.double() if isinstance(inputs, torch.Tensor) else inputs
    times: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        times[0].append(processor_seconds(lambda: prune(model, inputs, path, verify=False)))
        times[1].append(processor_seconds(lambda: prune(model, inputs, path, verify=True)))
        with deterministic():
            times[2].append(sum(processor_seconds(lambda each=each: call(each, given)) for each in doubles))
    off, on, forwards = map(statistics.median, times)
    return off, on, forwards


def measure_peak(name: str, path: str, verify: bool) -> float:
    """MiB; to be run in a fresh process."""
    model, inputs = build(name)
    prune(model, inputs, path, verify)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rounds: int = 3) -> str:
    """The table."""
    rows = []
    for name, path in CASES:
        child = ("tests.benchmarks.bench_proof", "--child", name, path)
        off, on, forwards = in_fresh_process(*child, "--rounds", rounds)
        peaks = [in_fresh_process(*child, *flags) for flags in (("--peak",), ("--peak", "--verify"))]
        rows.append((name, path, off, on, forwards, (on - off) / forwards, *peaks))
    headers = (
        *("model", "path", "transform, verify off (s)", "on (s)", "both forwards in float64 (s)", "proof / forwards"),
        *("peak of the process, verify off (MiB)", "on (MiB)"),
    )
    return table(headers, rows, ("", "", ".2f", ".2f", ".2f", ".1f", ".0f", ".0f"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "PATH"), help="measure one model in this process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", action="store_true", help="with --child: memory, not time")
    parser.add_argument("--verify", action="store_true", help="with --peak")
    options = parser.parse_args(arguments)
    if options.child is None:
        print(measure(options.rounds))
        return
    torch.set_num_threads(1)
    if options.peak:
        print(json.dumps(measure_peak(*options.child, options.verify)))
    else:
        print(json.dumps(measure_times(*options.child, options.rounds)))


if __name__ == "__main__":
    main()
