"""How do I train a layer with connections of my own choice, and get rid of what they leave out?

A graph says which inputs a layer connects with which outputs. The rest carries no signal, no gradient, and stays
exactly zero under Adam with weight decay. Afterwards, what nothing reaches and nobody reads is removed for good.

    python examples/masked_layers.py
"""

from __future__ import annotations

import networkx as nx
import torch
from torch import nn

import fxprune
from fxprune.sparse import MaskedLinear, mask_from_graph, random_mask, shrink


def wiring() -> nx.DiGraph:
    """Twelve sensors and eight units: every unit reads two neighbours, and units 6 and 7 are not wired at all."""
    graph = nx.DiGraph()
    graph.add_nodes_from((f"sensor {k}" for k in range(12)), bipartite=0)
    graph.add_nodes_from((f"unit {k}" for k in range(8)), bipartite=1)
    graph.add_edges_from((f"sensor {2 * k + j}", f"unit {k}") for k in range(6) for j in (0, 1))
    return graph


def main() -> None:
    """Train, look at the zeros, shrink, and compare."""
    torch.manual_seed(0)
    first = MaskedLinear(12, 8, mask_from_graph(wiring()), bias=False)
    readout = random_mask(2, 8, fan_in=4, seed=1)
    readout[:, 3] = False  # nobody reads unit 3
    net = nn.Sequential(first, nn.Tanh(), MaskedLinear(8, 2, readout))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(300):
        x = torch.randn(64, 12)
        loss = (net(x) - torch.stack([x[:, 0] * 2, x[:, 4:8].sum(1)], 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.3f}")
    print(first)
    print("largest weight where there is no connection:", first.weight[~first.mask].abs().max().item())

    net.eval()
    small = shrink(net, torch.randn(1, 12))
    print(small.get_submodule("0"), small.get_submodule("2"), sep="\n")
    print("gone:", fxprune.record(small).removed["0.weight"])
    with torch.no_grad():
        x = torch.randn(100, 12)
        print(f"largest difference: {(small(x) - net(x)).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
