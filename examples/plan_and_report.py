"""What would go, what does it cost, why does the rest stay, and what happened? Analyse, plan, look, transform, read.

An analysis changes nothing and can be planned from several times; a plan is plain data, and what it would leave can be
counted without making it. `fxprune.plot.dependencies(analysis, plan, path="picture.png")` draws the same.

    python examples/plan_and_report.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune


class Mixer(nn.Module):
    """Layer norms, grouped convolutions and a sort: what is exact, what is a grid, what is locked."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 24, 3, padding=1, groups=4)
        self.wide = nn.Linear(24, 48)
        self.norm = nn.LayerNorm(48)
        self.narrow = nn.Linear(48, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Images to 5 numbers each."""
        x = torch.relu(self.grouped(torch.relu(self.stem(x)))).mean((2, 3))
        x = torch.relu(self.norm(self.wide(x)))
        return self.head(self.narrow(x).sort(dim=1).values)


def main() -> None:
    """Print the analysis, what three plans would leave, what flows where, and the record of one of them."""
    torch.manual_seed(0)
    net, x = Mixer().eval(), torch.randn(2, 3, 8, 8)

    analysis = fxprune.analyze(net, x)
    print(analysis.report(), "\n")
    for group in analysis.groups:
        print(group)
        for reason in group.reasons:
            print("    not exact:", reason)

    plans = {
        "half of everything": analysis.plan(ratio=0.5),
        "only what is exact": analysis.plan(ratio=0.5, exact=True),
        "a third of one layer": analysis.plan(ratio={"wide": 1 / 3}, importance="l1"),
    }
    before = analysis.cost()
    for name, plan in plans.items():
        indices = sum(len(gone) for dims in plan.removed.values() for gone in dims.values())
        after = analysis.cost(plan)  # of a model that nobody has made yet
        print(f"\n{name}: {indices} slots of {len(plan.removed)} tensors go", end="")
        print(f", parameters {before.params} -> {after.params}, MACs {before.macs} -> {after.macs}")

    print("\nfrom layer to layer:", *(f"{a} -> {b}" for a, b in analysis.to_networkx().edges), sep="\n  ")
    print()
    small = fxprune.transform(net, x, plan=plans["only what is exact"])
    assert fxprune.cost(small, x) == analysis.cost(plans["only what is exact"])
    print(fxprune.record(small).report())


if __name__ == "__main__":
    main()
