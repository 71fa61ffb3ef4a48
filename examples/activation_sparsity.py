"""How sparse can activations be, and which channels do they say can go? Threshold, count, prune, fine-tune.

A small convolutional network learns scikit-learn's handwritten digits (1797 images of 8 x 8) twice: as it is, and with
a threshold behind every ReLU that lets 80 % of the activations go. Then the channels of the plain one that are zero
most often (APoZ, Hu et al. 2016) are removed, and the classifier at the end is tuned while the rest is frozen.

    python examples/activation_sparsity.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import fxprune
from fxprune.schedules import AGP
from fxprune.sparse import (
    Quantile,
    activation_statistics,
    freeze,
    importance_from,
    insert_thresholds,
    step_thresholds,
)

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def load() -> Data:
    """Training images and labels, test images and labels; pixels from -1 to 1."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=digits.target)
    return images[train], labels[train], images[test], labels[test]


def network() -> nn.Module:
    """Three convolutions and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def fit(model: nn.Module, data: Data, epochs: int, what: str, *, thresholds: bool = False) -> None:
    """Train with AdamW; `thresholds` advances the schedule of the thresholds after every step."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.003, weight_decay=0.01)
    model.train()
    for _ in tqdm(range(epochs), desc=what, unit="epoch", disable=None):
        for chosen in torch.randperm(len(data[1])).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(data[0][chosen]), data[1][chosen]).backward()
            optimizer.step()
            if thresholds:
                step_thresholds(model)
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Data) -> float:
    """The share of test images that the model names correctly."""
    return (model(data[2]).argmax(1) == data[3]).float().mean().item()


def main(epochs: int = 4) -> dict[str, float]:
    """Train both, prune one; accuracies on the test images."""
    data = load()
    plain = network()
    fit(plain, data, epochs, "plain")
    found = {"plain": accuracy(plain, data)}
    print(f"plain network: accuracy {found['plain']:.2%}")

    steps = epochs * -(-len(data[1]) // 64)
    made = insert_thresholds(network(), threshold=Quantile(AGP(0.0, 0.8, steps=steps // 2)))
    fit(made.model, data, epochs, "sparse", thresholds=True)
    found["sparse"] = accuracy(made.model, data)
    print(f"thresholds at 80 %: accuracy {found['sparse']:.2%}, zeros on the test images:")
    for name, activation in made.layers.items():
        layer = made.model.get_submodule(name)
        print(f"  behind {activation}: {layer.zeros.item():.1%}, threshold {layer.threshold.item():.3f}")

    statistics = activation_statistics(plain, data[0].split(256))
    print(statistics.table())
    small = fxprune.transform(plain, data[2][:1], ratio=0.4, importance=importance_from(statistics))
    found["pruned"] = accuracy(small, data)
    share = fxprune.cost(small, data[2][:1]).macs / fxprune.cost(plain, data[2][:1]).macs
    print(f"40 % of the channels gone by APoZ, {share:.2f} of the MACs: accuracy {found['pruned']:.2%}")

    freeze(small, [nn.Conv2d, nn.BatchNorm2d])
    fit(small, data, epochs // 2, "tune")
    found["tuned"] = accuracy(small, data)
    print(f"classifier tuned, the rest frozen: accuracy {found['tuned']:.2%}")
    return found


if __name__ == "__main__":
    main()
