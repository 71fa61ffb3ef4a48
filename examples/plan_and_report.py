"""What would go, why does the rest stay, and what happened? Analyse, plan, look, transform, read the record.

An analysis changes nothing and can be planned from several times; a plan is plain data.

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
    """Print the analysis, three plans made from it, and the record of one of them."""
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
    for name, plan in plans.items():
        indices = sum(len(gone) for dims in plan.removed.values() for gone in dims.values())
        print(f"\n{name}: {indices} slots of {len(plan.removed)} tensors go", end="")
        small = fxprune.transform(net, x, plan=plan)
        before, after = fxprune.cost(net, x), fxprune.cost(small, x)
        print(f", parameters {before.params} -> {after.params}, MACs {before.macs} -> {after.macs}")

    print()
    print(fxprune.record(small).report())


if __name__ == "__main__":
    main()
