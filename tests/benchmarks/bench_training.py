"""The worth of an optimizer's state while a model gets smaller: accuracy over the epochs of a training, on digits.

Four trainings of one ResNet, equal but for the pruning: dense, never pruned; pruned at once to the budget, then trained
further; pruned in steps by a `GradualPruner` whose optimizer follows; and the same with a new optimizer after each
step, at the same learning rate. The mean over three seeds goes to docs/images/training.json, for the picture.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.schedules import AGP
from tests.benchmarks.common import table

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "images" / "training.json"

WIDTH, EPOCHS, BATCH, RATE, BUDGET, SEEDS = 12, 20, 64, 3e-3, 0.1, (0, 1, 2)
FIRST, STEPS = 3, 10
"""The first epoch after which a step is made, and the number of steps, one after each epoch."""

KINDS = {
    "dense": "dense, never pruned",
    "at once": "pruned at once, then trained",
    "kept": "in steps, the optimizer follows",
    "new": "in steps, each time a new optimizer",
}
"""Kind of a training -> its words in table and picture."""


@functools.cache
def digits() -> Any:
    """The module `examples/digits.py`."""
    spec = importlib.util.spec_from_file_location("digits_example", ROOT / "examples" / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rate(epoch: float) -> float:
    """The learning rate: a half of a cosine over all epochs."""
    return RATE * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, epoch: int) -> None:
    """One epoch, with random shifts by one pixel."""
    model.train()
    chunks = torch.randperm(len(labels)).split(BATCH)
    for number, chosen in enumerate(chunks):
        x = F.pad(images[chosen], (1, 1, 1, 1), value=-1)
        top, left = torch.randint(0, 3, (2,)).tolist()
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch + number / len(chunks))
        optimizer.zero_grad()
        F.cross_entropy(model(x[:, :, top : top + 8, left : left + 8]), labels[chosen]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The per cent of the test images that are recognised."""
    model.eval()
    return float((model(images).argmax(1) == labels).float().mean()) * 100


def trained(kind: str, seed: int) -> tuple[list[float], float]:
    """The accuracy after each epoch of a training, and the share of the multiply-adds that is left at the end."""
    torch.manual_seed(seed)
    images, labels, *test = digits().load()
    model = digits().ResNet(WIDTH)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    example = images[:2]
    full = fxprune.cost(model, example).macs or 1
    last = FIRST + STEPS - 1
    schedule = AGP(0.0, 1.0, steps=STEPS) if kind != "at once" else 1.0
    pruner = fxprune.GradualPruner(model, example, keep={"macs": BUDGET}, schedule=schedule, optimizer=optimizer)
    found = []
    for epoch in range(1, EPOCHS + 1):
        train(model, optimizer, images, labels, epoch - 1)
        if (kind in ("kept", "new") and FIRST <= epoch <= last) or (kind == "at once" and epoch == last):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pruner.step()
            if kind == "new":
                optimizer = pruner.optimizer = torch.optim.AdamW(model.parameters(), RATE)
        found.append(accuracy(model, *test))
    return found, (fxprune.cost(model, example).macs or 0) / full


def measure() -> str:
    """Train everything, write the curves, and return the table."""
    curves, rows = {}, []
    last = FIRST + STEPS - 1
    for kind, words in KINDS.items():
        runs = [trained(kind, seed) for seed in SEEDS]
        curves[words] = [round(statistics.mean(at), 2) for at in zip(*(run for run, _ in runs), strict=True)]
        ends = [run[-1] for run, _ in runs]
        pruning = [statistics.mean(run[FIRST - 1 : last]) for run, _ in runs]
        lowest = [min(run[FIRST - 1 :]) for run, _ in runs]
        each = ", ".join(f"{end:.1f}" for end in sorted(ends))
        left = statistics.mean(share for _, share in runs)
        rows.append(
            (words, left, *(statistics.mean(values) for values in (pruning, lowest, ends)), each),
        )
    FIGURES.write_text(json.dumps({"curves": curves, "first": FIRST, "last": last}, indent=1) + "\n")
    headers = ("training", "MACs left", f"mean of epochs {FIRST} to {last}", "lowest", "at the end", "each seed")
    return table(headers, rows, ("", ".3f", ".1f", ".1f", ".1f", ""))


if __name__ == "__main__":
    print(measure())
