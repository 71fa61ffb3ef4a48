"""What do two thirds of a network's MACs cost in accuracy and time? Train, prune, repair, fine-tune, measure.

A small ResNet learns scikit-learn's handwritten digits (1797 images of 8 x 8). Then two thirds of its multiply-adds go.
The result is proven against its reference, repaired on 512 images without labels, fine-tuned and timed.

    python examples/digits.py
"""

from __future__ import annotations

import copy
import statistics
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

import fxprune

Data = tuple[Tensor, Tensor, Tensor, Tensor]


class Block(nn.Module):
    """Two convolutions around a shortcut; the shortcut is a convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """y = relu(branch(x) + shortcut(x))"""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, four blocks in two stages, average over space, one linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.stage2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [n, 1, 8, 8] to logits [n, 10]."""
        x = self.stage2(self.stage1(self.stem(x)))
        return self.head(x.mean((2, 3)))


def load() -> Data:
    """Training images and labels, test images and labels; pixels from -1 to 1."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=digits.target)
    return images[train], labels[train], images[test], labels[test]


def fit(model: nn.Module, data: Data, epochs: int, rate: float, what: str) -> None:
    """Train with random shifts by one pixel, AdamW and a one-cycle schedule."""
    images, labels = data[:2]
    batch = 64
    steps = -(-len(labels) // batch) * epochs
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    model.train()
    with tqdm(total=steps, desc=what, unit="step", disable=None) as progress:
        for _ in range(epochs):
            for chosen in torch.randperm(len(labels)).split(batch):
                x = F.pad(images[chosen], (1, 1, 1, 1), value=-1)
                top, left = torch.randint(0, 3, (2,)).tolist()
                loss = F.cross_entropy(model(x[:, :, top : top + 8, left : left + 8]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, data: Data) -> float:
    """The share of test images that the model names correctly."""
    return (model(data[2]).argmax(1) == data[3]).float().mean().item()


@torch.inference_mode()
def latency(models: list[nn.Module], x: Tensor, repeats: int) -> list[float]:
    """Median milliseconds of a forward; the models take turns, so that they share every disturbance."""
    times: list[list[float]] = [[] for _ in models]
    for turn in range(repeats + 3):
        for model, found in zip(models, times, strict=True):
            start = time.perf_counter()
            model(x)
            if turn >= 3:  # the first rounds warm up
                found.append(1000 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def main(epochs: int = 16, quick: bool = False) -> dict[str, float]:
    """Train, prune, repair, fine-tune; print one table and the dependency report; return the measured figures."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # several threads on shared cores wait for each other, and timings scatter
    data = load()
    epochs = min(epochs, 8) if quick else epochs
    model = ResNet(16 if quick else 48)
    fit(model, data, epochs, 0.01, "train")

    one, many = data[2][:1], data[2][:64]
    pruned = fxprune.transform(model, many, keep={"macs": 1 / 3}, round_to=4)  # proven; raises if it is wrong
    error = fxprune.verify(model, pruned, data[2])  # the same proof on all test images
    repaired = fxprune.repair(pruned, model, [data[0][:512]])  # no labels, no training
    tuned = copy.deepcopy(repaired)
    fit(tuned, data, max(1, epochs // 4), 0.003, "fine-tune")

    before, after = fxprune.cost(model, one), fxprune.cost(tuned, one)
    repeats = 20 if quick else 300
    one_ms, many_ms = latency([model, tuned], one, repeats), latency([model, tuned], many, repeats)
    right = [accuracy(m, data) for m in (model, pruned, repaired, tuned)]
    rows = [
        ("accuracy before pruning", f"{right[0]:.2%}", "", ""),
        ("accuracy right after pruning", "", f"{right[1]:.2%}", ""),
        ("accuracy after the repair, no training", "", f"{right[2]:.2%}", ""),
        ("accuracy after fine-tuning", "", f"{right[3]:.2%}", ""),
        ("parameters", f"{before.params:,}", f"{after.params:,}", f"{after.params / before.params:.2f}"),
        ("MACs", f"{before.macs:,}", f"{after.macs:,}", f"{after.macs / before.macs:.2f}"),
        ("latency, batch 1 (ms)", *(f"{t:.2f}" for t in one_ms), f"{one_ms[1] / one_ms[0]:.2f}"),
        ("latency, batch 64 (ms)", *(f"{t:.2f}" for t in many_ms), f"{many_ms[1] / many_ms[0]:.2f}"),
        ("verification error", "", f"{error:.1e}", ""),
    ]
    headers = ("", "original", "small", "small / original")
    print(tabulate(rows, headers=headers, colalign=("left", "right", "right", "right"), disable_numparse=True))
    print(
        f"""
How channels were chosen: the channels of each group were ranked by the l2 norm of all parameters that go with
them, and the lowest went: the same share of every group, kept counts in multiples of 4, until a third of the MACs
was left.
Repair: each layer was refitted to the outputs of the original on 512 training images, without labels.
Latency: median of {repeats} runs on one thread, original and small in turns.
Verification error: the largest relative difference, in float64 on all test images and before fine-tuning, from
the original with the removed channels set to zero.
"""
    )
    print(fxprune.analyze(model, one).report())
    named = dict(zip(("before", "pruned", "repaired", "tuned"), right, strict=True))
    return {**named, "macs": after.macs / before.macs, "error": error}


if __name__ == "__main__":
    main()
