"""How does a graph that I traced and edited myself become smaller?

`transform` takes a `torch.fx.GraphModule` as it is: here one whose activations were replaced. A size that is written
into the forward (the 32 in `view`) is counted anew.

    python examples/traced_model.py
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

import fxprune


class Net(nn.Module):
    """Two convolutions and a classifier, with a size written down in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to 10 numbers each."""
        x = torch.relu(self.norm(self.conv1(x)))
        x = torch.relu(self.conv2(x))
        x = nn.functional.adaptive_avg_pool2d(x, 1)
        return self.head(x.view(-1, 32))


def main() -> None:
    """Trace, edit the graph, prune it, and show what came out."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    traced = fx.symbolic_trace(Net().eval())
    for node in traced.graph.find_nodes(op="call_function", target=torch.relu):
        node.target = nn.functional.gelu
    traced.recompile()

    small = fxprune.transform(traced, x, ratio=0.5)
    print(small.code)
    print(fxprune.record(small).report())
    assert fxprune.verify(traced, small, torch.randn(5, 3, 8, 8)) < 1e-9
    assert small(x).shape == traced(x).shape


if __name__ == "__main__":
    main()
