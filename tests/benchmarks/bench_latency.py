"""Latency of the small model over that of a model written by hand at the same widths, and over the original.

The model written by hand is the original class with fresh layers of the new widths and the small model's weights;
it computes the same function, which is checked first. Goal: at most 1.02 times its latency. Over the original, the
ratio of multiply-adds stands beside the ratio of latencies. The three run in turns, evaluation mode, float32.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import fxprune
from tests.benchmarks.common import interleaved, median_ratio, model_and_input, table
from tests.support import relative_error

NAMES = ("resnet50", "mobilenet_v2")
BATCHES = (1, 16)


def by_hand(original: nn.Module, small: nn.Module) -> nn.Module:
    """The original class with new layers of the widths of `small`."""
    clone = copy.deepcopy(original)
    for name, module in original.named_modules():
        fresh = fresh_layer(module, small.get_submodule(name) if name else small)
        if fresh is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(clone.get_submodule(parent), leaf, fresh)
    clone.load_state_dict(small.state_dict())
    return clone.eval()


def fresh_layer(old: nn.Module, new: Any) -> nn.Module | None:
    """A layer as one would write it down, None for what has no width."""
    if isinstance(old, nn.Conv2d):
        sizes = (new.in_channels, new.out_channels, old.kernel_size)
        bias = old.bias is not None
        return nn.Conv2d(*sizes, old.stride, old.padding, old.dilation, new.groups, bias)
    if isinstance(old, nn.BatchNorm2d):
        return nn.BatchNorm2d(new.num_features, old.eps, old.momentum)
    if isinstance(old, nn.Linear):
        return nn.Linear(new.in_features, new.out_features, old.bias is not None)
    return None


def measure_one(name: str, batch: int, ratio: float, rounds: int) -> tuple[object, ...]:
    """One row: milliseconds of the three, small over by hand, small over original, and the ratio of MACs."""
    original, x = model_and_input(name, batch)
    small = fxprune.transform(original, x[:1], ratio=ratio, importance="l1")
    hand = by_hand(original, small)
    models = {"original": original, "by hand": hand, "small": small}

    def forward(model: nn.Module) -> Callable[[], Any]:
        return lambda: model(x)

    with torch.inference_mode():
        assert relative_error(small(x), hand(x)) < 1e-4
        times = interleaved({key: forward(model) for key, model in models.items()}, rounds)
    macs = fxprune.cost(small, x).macs / fxprune.cost(original, x).macs
    medians = [1000 * statistics.median(t) for t in times.values()]
    over = [median_ratio(times["small"], times[key]) for key in ("by hand", "original")]
    return name, batch, *medians, *over, macs


def measure(names: Sequence[str] = NAMES, batches: Sequence[int] = BATCHES, ratio: float = 0.5, rounds: int = 0) -> str:
    """The table."""
    rows = [measure_one(name, b, ratio, rounds or (60 if b == 1 else 20)) for name in names for b in batches]
    headers = (
        *("model", "batch", "original (ms)", "by hand (ms)", "small (ms)"),
        *("small / by hand", "small / original", "MACs small / original"),
    )
    return table(headers, rows, ("", "", ".1f", ".1f", ".1f", ".3f", ".3f", ".3f"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="torchvision models of Conv2d, BatchNorm2d and Linear")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=0, help="default: 60 at batch 1, else 20")
    options = parser.parse_args(arguments)
    print(measure(options.names, options.batches, options.ratio, options.rounds))


if __name__ == "__main__":
    main()
