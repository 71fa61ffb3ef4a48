"""Does it help to regrow connections where input and output are active together? Six ways to train, one table.

A small convolutional network learns scikit-learn's handwritten digits (1797 images of 8 x 8) with 88 % of the
connections of its convolutions missing: moved to where coactivation is strong, moved at random, or left where they
were at first; and without any missing. Every way takes the same steps on the same batches, from the same first values.

    python examples/dynamic_sparse.py
    python examples/dynamic_sparse.py --plot curves.png
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from fxprune.schedules import Constant, Linear, Schedule
from fxprune.sparse.dynamic import DynamicSparseConv2d, update_layers

Data = tuple[Tensor, Tensor, Tensor, Tensor]

DYNAMIC = ("coactivation, per pair", "coactivation, per channel", "random, per pair", "random, per channel")
WAYS = ("dense", "static sparse", *DYNAMIC)


@dataclass(frozen=True)
class Run:
    """Test accuracy after every epoch, seconds of processor time of all training, and the share of weights at 0."""

    accuracy: tuple[float, ...]
    seconds: float
    sparsity: float


def load() -> Data:
    """Training images and labels, test images and labels; pixels from -1 to 1."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=digits.target)
    return images[train], labels[train], images[test], labels[test]


def network(way: str, seed: int, regrow: Schedule) -> nn.Sequential:
    """Two convolutions, dynamic in a sparse way, and a linear layer; batch norm keeps sparse channels at scale."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )
    if way == "dense":
        return net
    options: Any = {
        "sparsity": 0.88,  # 3 of the 25 connections between two channels are active
        "regrow": regrow,
        "dims": (0,) if way.endswith("per channel") else (0, 1),
        "growth": "coactivation" if "coactivation" in way else "random",
    }
    for number, module in enumerate(net):
        if isinstance(module, nn.Conv2d):
            net[number] = DynamicSparseConv2d.from_dense(module, **options)
    return net


def fit(way: str, data: Data, epochs: int, seed: int, constant: bool) -> Run:
    """Train; dynamic ways update their connections after each epoch of the first three quarters.

    Of the three active connections of a pair one is new after every update, and later none, unless `constant`.
    """
    torch.manual_seed(seed)
    batches = [torch.randperm(len(data[1])).split(64) for _ in range(epochs)]
    steps = sum(map(len, batches))
    regrow = Constant(1 / 3) if constant else Linear(1 / 3, 0.0, steps=3 * steps // 4)
    net = network(way, seed, regrow)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    accuracy, seconds = [], 0.0
    for epoch in range(epochs):
        net.train()
        start = time.process_time()
        for chosen in batches[epoch]:
            optimizer.zero_grad()
            F.cross_entropy(net(data[0][chosen]), data[1][chosen]).backward()
            optimizer.step()
            schedule.step()
        if way in DYNAMIC and epoch < 0.75 * epochs:
            update_layers(net, optimizer)
        seconds += time.process_time() - start
        net.eval()
        with torch.inference_mode():
            accuracy.append((net(data[2]).argmax(1) == data[3]).float().mean().item())
    plain = [m.squashed() if hasattr(m, "squashed") else m for m in net]
    weights = torch.cat([m.weight.flatten() for m in plain if isinstance(m, (nn.Conv2d, nn.Linear))])
    return Run(tuple(accuracy), seconds, (weights == 0).float().mean().item())


def draw(runs: dict[str, list[Run]], path: str) -> None:
    """Mean test accuracy by epoch, a curve for every way, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for way, its in runs.items():
        curve = torch.tensor([run.accuracy for run in its]).mean(0)
        axes.plot(range(1, len(curve) + 1), 100 * curve, label=way)
    axes.set(xlabel="epoch", ylabel="test accuracy (%)")
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def main(quick: bool = False, plot: str | None = None, *, constant: bool = False) -> dict[str, list[Run]]:
    """Train every way from several seeds; print one table; return the runs."""
    torch.set_num_threads(1)
    data, epochs, seeds = load(), 3 if quick else 20, range(2 if quick else 4)
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    for seed in tqdm(seeds, desc="seeds", unit="seed", disable=None):
        for way in WAYS:  # in turns, so that they share every disturbance
            runs[way].append(fit(way, data, epochs, seed, constant))
    rows = []
    for way, its in runs.items():
        final = [100 * run.accuracy[-1] for run in its]
        ratio = statistics.median(run.seconds / dense.seconds for run, dense in zip(its, runs["dense"], strict=True))
        rows.append(
            (
                *(way, f"{its[0].sparsity:.1%}", f"{statistics.mean(final):.2f}", f"{statistics.stdev(final):.2f}"),
                *(f"{min(final):.2f}", f"{statistics.median(run.seconds for run in its):.2f}", f"{ratio:.2f}"),
            )
        )
    headers = ("", "weights at 0", "accuracy (%)", "deviation", "worst", "seconds", "over dense")
    print(tabulate(rows, headers=headers, colalign=("left", *["right"] * 6), disable_numparse=True))
    print(f"\nTest accuracy after {epochs} epochs: mean, standard deviation and worst of {len(seeds)} seeds.")
    if plot:
        draw(runs, plot)
        print(f"curves: {plot}")
    return runs


def command(arguments: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few epochs and two seeds")
    parser.add_argument("--constant", action="store_true", help="go on regrowing a third, instead of ever less")
    parser.add_argument("--plot", help="where to save a picture of the curves; none by default")
    options = parser.parse_args(arguments)
    main(options.quick, options.plot, constant=options.constant)


if __name__ == "__main__":
    command()
