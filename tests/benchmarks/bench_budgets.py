"""Budgets of latency, and the part of a cut in multiply-adds that is gained in time.

Three tables. What a budget of half the latency predicts, and what is measured for the model that is returned (goal:
within 5 %). What a ratio cuts of the multiply-adds and of the latency (goal: at least 80 % of the cut is gained). A
plan for a latency against a plan for equally many multiply-adds. The models run in turns, evaluation mode, float32,
batch 1.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import fxprune
from fxprune.costs import measured_in_turn
from tests.benchmarks.common import table
from tests.support import randomise, torchvision

SIZES = {"resnet50": 128, "mobilenet_v3_large": 128, "vit_b_16": 64}
"""Name of a model -> the pixels of its images."""


def model_of(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A torchvision model, its affines and statistics random, and one image."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"image_size": SIZES[name]} if name.startswith("vit") else {}
    model = torchvision().models.get_model(name, **options).eval()
    return randomise(model, 0), torch.randn(1, 3, SIZES[name], SIZES[name])


def pruned(model: nn.Module, x: torch.Tensor, **options: Any) -> nn.Module:
    """The small model, without the proof."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fxprune.transform(model, x, verify=False, **options)


def macs_left(small: nn.Module) -> float:
    """The share of the multiply-adds that a small model keeps."""
    costs = fxprune.record(small).cost
    assert costs is not None
    return float((costs[1].macs or 0) / (costs[0].macs or 1))


def shares(models: Sequence[nn.Module], x: torch.Tensor, rounds: int) -> list[float]:
    """The latencies over that of the first model."""
    times = [found.seconds for found in measured_in_turn(models, x, rounds)]
    return [seconds / times[0] for seconds in times]


def predicted(small: nn.Module) -> float:
    """The share of the latency that the plan was predicted to keep."""
    text = next(reason for reason in fxprune.record(small).reasons if reason.startswith("latency: "))
    found = re.search(r"\(([\d.]+)%\)", text)
    assert found is not None
    return float(found[1]) / 100


def budgets(names: Sequence[str], rounds: int) -> str:
    """The table of budgets of half the latency."""
    rows = []
    for name in names:
        model, x = model_of(name)
        small = pruned(model, x, keep={"latency": 0.5}, latency_table=False)
        told, measured = predicted(small), shares([model, small], x, rounds)[1]
        rows.append((name, SIZES[name], 0.5, told, measured, f"{measured / told - 1:+.1%}", macs_left(small)))
    headers = ("model", "pixels", "budget", "predicted", "measured", "off by", "MACs left")
    return table(headers, rows, ("", "", ".2f", ".3f", ".3f", "", ".3f"))


def realised(names: Sequence[str], ratios: Sequence[float], multiples: Sequence[int | str], rounds: int) -> str:
    """The table of the cuts in multiply-adds and in latency."""
    rows = []
    for name in names:
        model, x = model_of(name)
        for ratio in ratios:
            made = [pruned(model, x, ratio=ratio, round_to=multiple) for multiple in multiples]
            for multiple, small, left in zip(multiples, made, shares([model, *made], x, rounds)[1:], strict=True):
                macs = macs_left(small)
                rows.append((name, SIZES[name], ratio, multiple, macs, left, f"{(1 - left) / (1 - macs):.0%}"))
    headers = ("model", "pixels", "ratio", "round_to", "MACs left", "latency left", "of the cut")
    return table(headers, rows, ("", "", ".1f", "", ".3f", ".3f", ""))


def against_macs(names: Sequence[str], rounds: int) -> str:
    """The table of plans for a latency against plans for as many multiply-adds."""
    rows = []
    for name in names:
        model, x = model_of(name)
        timed = pruned(model, x, keep={"latency": 0.5}, round_to="auto", latency_table=False)
        counted = pruned(model, x, keep={"macs": macs_left(timed)})
        _, left, other = shares([model, timed, counted], x, rounds)
        rows.append((name, macs_left(timed), macs_left(counted), left, other, f"{left / other - 1:+.1%}"))
    headers = ("model", "MACs, for latency", "MACs, for MACs", "latency, for latency", "latency, for MACs", "faster by")
    return table(headers, rows, ".3f")


def measure(names: Sequence[str] = tuple(SIZES), rounds: int = 30) -> str:
    """The three tables."""
    few = [name for name in names if name != "mobilenet_v3_large"]
    tables = (
        budgets(names, rounds),
        realised(few, (0.3, 0.5), (1, 8, 16), rounds),
        against_macs([name for name in names if name != "vit_b_16"], rounds),
    )
    return "\n\n".join(tables)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SIZES), help=f"of {', '.join(SIZES)}")
    parser.add_argument("--only", choices=("budgets", "realised", "against"), help="one table (default: all)")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(arguments)
    names, rounds = options.names, options.rounds
    made = {
        "budgets": lambda: budgets(names, rounds),
        "realised": lambda: realised(names, (0.3, 0.5), (1, 8, 16), rounds),
        "against": lambda: against_macs(names, rounds),
    }
    print(made[options.only]() if options.only else measure(names, rounds))


if __name__ == "__main__":
    main()
