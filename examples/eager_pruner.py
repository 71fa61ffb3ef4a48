"""How do I prune step by step while a model trains, and get a smaller model with the same accuracy at the end?

A pruner puts masks and hooks on the layers. Every call of `step` prunes a little more, by a schedule, and training goes
on in between. `convert` then makes the smaller model, without masks and hooks, which computes the same function.

    python examples/eager_pruner.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fxprune
from fxprune.pruner import L2Pruner
from fxprune.schedules import AGP


def net() -> nn.Sequential:
    """A small convolutional network for images of 8 x 8 pixels."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """One pass over the data in random order."""
    model.train()
    for batch in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of right answers, in percent."""
    model.eval()
    return 100 * (model(images).argmax(1) == labels).double().mean().item()


def main() -> None:
    """Train, prune from 0 to 75 % of three layers over four epochs, train on, convert, compare."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, test = (images[:1300], labels[:1300]), (images[1300:], labels[1300:])

    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        train_epoch(model, optimizer, *train)
    print(f"{'trained':<12} {accuracy(model, *test):.2f} % right")

    pruner = L2Pruner(AGP(0.0, 0.75, steps=4))
    pruner.prepare(
        model, [("0", "1"), ("3", "4"), "8"]
    )  # two convolutions with their batch norms, and the linear layer
    pruner.step()  # the schedule starts at 0
    for _ in range(4):
        pruner.step()
        train_epoch(model, optimizer, *train)  # the same optimizer: the parameters are the same objects
        pruned = sum(int((~mask).sum()) for mask in pruner.masks().values())
        print(f"{f'step {pruner.steps - 1}':<12} {accuracy(model, *test):.2f} % right, {pruned} outputs pruned")

    small = pruner.convert(images[:2])
    difference = (small(test[0]) - model(test[0])).abs().max().item()
    print(f"{'converted':<12} {accuracy(small, *test):.2f} % right, largest difference {difference:.1e}")
    before, after = fxprune.cost(net().eval(), images[:1]), fxprune.cost(small, images[:1])
    print(f"parameters {before.params} -> {after.params}, MACs {before.macs} -> {after.macs}")
    assert accuracy(small, *test) == accuracy(model, *test)


if __name__ == "__main__":
    main()
