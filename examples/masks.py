"""How do I remove exactly the channels that I name, and learn why some of them stay?

A mask says for each output channel of a layer whether it is kept. What is coupled to a masked channel goes with
it, what cannot go stays, and the plan says why.

    python examples/masks.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune


class Net(nn.Module):
    """A residual pair (stem and branch share their channels), a layer that nothing holds, and the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.free = nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images to 4 channels of the same size."""
        x = torch.relu(self.stem(x))
        x = x + self.branch(x)
        return self.head(torch.relu(self.free(x)))


def without(channels: int, *removed: int) -> Tensor:
    """A mask over `channels` that is False at `removed`."""
    mask = torch.ones(channels, dtype=torch.bool)
    mask[list(removed)] = False
    return mask


def main() -> None:
    """Mask three layers, print the removed and the kept channels, and check the result by hand."""
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(1, 3, 8, 8)
    masks = {"stem": without(8, 1, 5), "free": without(6, 0), "head": without(4, 3)}

    plan = fxprune.analyze(net, x).plan(masks=masks)
    for name, dims in plan.removed.items():
        print(f"{name:12} {dims}")
    for reason in plan.reasons:
        print("stays or comes along:", reason)

    small = fxprune.transform(net, x, plan=plan)
    with torch.no_grad():
        by_hand = fxprune.masked(net, plan.removed)  # the original with the same channels set to zero
        difference = (small(x) - by_hand(x)).abs().max().item()
    print(f"{net.stem} -> {small.get_submodule('stem')}")
    print(f"largest difference from the masked original, in float32: {difference:.1e}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
