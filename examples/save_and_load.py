"""How do I store a pruned model without pickle, and prune the next checkpoint of the same model alike?

The weights go into one safetensors file together with the plan; the plan alone is a JSON file that a person can read.
Both are applied to the original architecture, whatever weights it has.

    python examples/save_and_load.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import fxprune
from fxprune import load, save


class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.head = nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to 10 scores."""
        x = torch.relu(self.norm(self.conv1(x)))
        return self.head(torch.relu(self.conv2(x)).mean((2, 3)))


def train(model: nn.Module, x: Tensor, steps: int = 5) -> None:
    """A few steps towards nothing in particular: the weights change."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def main() -> None:
    """Prune, fine-tune, save, load into a fresh model, and apply the plan to another checkpoint."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    small = fxprune.transform(Net().eval(), x, ratio=0.5)
    train(small, x)

    with tempfile.TemporaryDirectory() as folder:
        weights, plan = Path(folder) / "small.safetensors", Path(folder) / "plan.json"
        save(small, weights)
        again = load(weights, into=Net())
        print(f"{weights.name}: {weights.stat().st_size} bytes, path {fxprune.record(again).path!r}")
        print(f"equal after loading, bit for bit: {torch.equal(small(x), again(x))}")

        fxprune.record(small).plan.save(plan)
        read = fxprune.Plan.load(plan)
        print("\nsizes in the plan:", *read.sizes, sep="\n  ")
        newer = Net().eval()  # another checkpoint of the same architecture
        other = fxprune.transform(newer, x, plan=read)
        print(
            f"\nanother checkpoint, the same channels: {fxprune.record(other).removed == fxprune.record(small).removed}"
        )

        wider = Net().eval()
        wider.conv2, wider.head = nn.Conv2d(16, 48, 3, padding=1), nn.Linear(48, 10)
        try:
            fxprune.transform(wider, x, plan=read)
        except fxprune.PlanError as error:
            print(f"\nanother architecture:\n{error}")


if __name__ == "__main__":
    main()
