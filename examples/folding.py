"""What is left of a filter that training has emptied? Its constant: dropped it changes the results, folded it does not.

A small network in which a training with masks has zeroed filters, but neither their biases nor the shifts of the norms
behind them. Removing these filters is only right if the constants that they put out go somewhere.

    python examples/folding.py
"""

from __future__ import annotations

import torch
from tabulate import tabulate
from torch import nn

import fxprune


def make_model() -> nn.Sequential:
    """Two padded convolutions with batch norms and a classifier, as after a training with masks."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    ).eval()
    with torch.no_grad():
        for conv, norm in ((net[0], net[1]), (net[3], net[4])):
            norm.running_mean.normal_(0, 0.3)
            norm.bias.normal_(0, 0.5)
            conv.weight[torch.rand(len(conv.weight)) < 0.5] = 0.0
    return net


def main() -> None:
    """Remove the empty filters in three ways and compare the results with those of the network."""
    net, x = make_model(), torch.randn(4, 3, 24, 24)
    before = fxprune.cost(net, x)
    rows = [("the network", before.params, before.macs, 0.0)]
    for name, options in (
        ("constants dropped", {"bias": "prune"}),
        ("folded, with a carrier", {"bias": "fold", "border": "carrier"}),
        ("folded, with a map", {"bias": "fold", "border": "map"}),
    ):
        small = fxprune.transform(net, x, masks="zeros", prefer="graph", **options)
        after = fxprune.cost(small, x)
        with torch.no_grad():
            error = float((small(x) - net(x)).abs().max() / net(x).abs().max())
        rows.append((name, after.params, after.macs, error))
    print(tabulate(rows, headers=("", "parameters", "MACs", "difference of the results"), floatfmt=".1e", intfmt=","))


if __name__ == "__main__":
    main()
