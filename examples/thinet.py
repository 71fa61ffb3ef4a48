"""How much accuracy is left right after pruning, if channels are chosen by what the next layer sees of them?

A small network is trained on scikit-learn's handwritten digits, and the same share of every layer's channels goes:
at random, by the l1 norm of the weights, and by ThiNet (greedy reconstruction of the next layer's outputs on training
images), without and with its least squares, all layers at once or one after the other. Nothing is fine-tuned, not
even between layers.

    python examples/thinet.py
"""

from __future__ import annotations

import statistics
import warnings

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tabulate import tabulate
from torch import Tensor, nn

import fxprune
from fxprune.criteria import thinet_importance
from fxprune.pruner import thinet

Data = tuple[Tensor, Tensor, Tensor, Tensor]
RATIOS = (0.25, 0.5)


def load() -> Data:
    """Training images and labels, test images and labels; pixels from -1 to 1."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=digits.target)
    return images[train], labels[train], images[test], labels[test]


def network() -> nn.Sequential:
    """Three convolutions and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 4, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train(model: nn.Module, data: Data, epochs: int) -> None:
    """AdamW with a one-cycle schedule."""
    images, labels = data[:2]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = -(-len(labels) // 64) * epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Data) -> float:
    """The share of test images that the model names correctly."""
    return (model(data[2]).argmax(1) == data[3]).float().mean().item()


def layer_by_layer(model: nn.Module, x: Tensor, batches: list[Tensor], ratio: float) -> nn.Module:
    """ThiNet on one group after the other, each on what the model pruned so far gives it."""
    for group in fxprune.analyze(model, x).groups:
        model = thinet(model, x, batches, ratio={group.name: ratio})
    return model


def main(seeds: int = 1, epochs: int = 6) -> dict[str, list[float]]:
    """Print the mean test accuracy by method and ratio; return it."""
    data = load()
    batches = list(data[0][:512].split(256))
    x = data[2][:1]
    found: dict[str, list[list[float]]] = {}
    before = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = network()
        train(model, data, epochs)
        before.append(accuracy(model, data))
        ranked = thinet_importance(model, batches)
        for number, ratio in enumerate(RATIOS):
            small = {
                "random": fxprune.transform(model, x, ratio=ratio, importance="random", seed=seed),
                "l1": fxprune.transform(model, x, ratio=ratio, importance="l1"),
                "ThiNet, no scaling": fxprune.transform(model, x, ratio=ratio, importance=ranked),
                "ThiNet": thinet(model, x, batches, ratio=ratio),
                "ThiNet, layer by layer": layer_by_layer(model, x, batches, ratio),
            }
            for name, pruned in small.items():
                found.setdefault(name, [[] for _ in RATIOS])[number].append(accuracy(pruned, data))
    means = {name: [statistics.mean(values) for values in by_ratio] for name, by_ratio in found.items()}
    rows = [(name, *(f"{value:.1%}" for value in values)) for name, values in means.items()]
    print(tabulate(rows, headers=("channels chosen by", *(f"ratio {r:g}" for r in RATIOS)), disable_numparse=True))
    spread = max(max(values) - min(values) for by_ratio in found.values() for values in by_ratio)
    print(
        f"""
Test accuracy right after pruning, mean of {seeds} network(s); before pruning {statistics.mean(before):.1%}.
With the same method and ratio they lie up to {spread:.1%} apart.
"""
    )
    return means


if __name__ == "__main__":
    warnings.simplefilter("error")
    main(seeds=3)
