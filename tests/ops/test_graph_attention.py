"""Attention over the edges of a graph: scores by vectors for source and target, a softmax by index, sums by index."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fxprune
from tests.support import randomise, relative_error

EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 4], [1, 2, 3, 4, 0, 3, 1, 4]])
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
HEADS, WIDTH = 4, 6


class Attention(nn.Module):
    """One layer; `scores` and `sums` are the ways in which it may be written."""

    def __init__(self, scores: str, sums: str) -> None:
        super().__init__()
        self.heads, self.width, self.scores, self.sums = HEADS, WIDTH, scores, sums
        self.stem = nn.Linear(6, 10)
        self.source, self.target = nn.Linear(10, HEADS * WIDTH), nn.Linear(10, HEADS * WIDTH)
        self.to_source = nn.Parameter(torch.randn(1, HEADS, WIDTH))
        self.to_target = nn.Parameter(torch.randn(1, HEADS, WIDTH))
        self.pair = nn.Parameter(torch.randn(HEADS, 2 * WIDTH))
        self.bias = nn.Parameter(torch.randn(HEADS * WIDTH))
        self.head = nn.Linear(HEADS * WIDTH, 3)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        z, other = (layer(x).view(-1, self.heads, self.width) for layer in (self.source, self.target))
        scores = F.leaky_relu(getattr(self, self.scores)(z, other, edges), 0.2)
        made = getattr(self, self.sums)(z, scores, edges)
        return self.head(F.elu(made.reshape(x.shape[0], self.heads * self.width) + self.bias))

    def by_vectors(self, z: Any, other: Any, edges: Any) -> torch.Tensor:
        return (z * self.to_source).sum(-1)[edges[0]] + (z * self.to_target).sum(dim=-1)[edges[1]]

    def by_one_vector(self, z: Any, other: Any, edges: Any) -> torch.Tensor:
        return (F.leaky_relu(z[edges[0]] + other[edges[1]], 0.2) * self.to_source).sum(-1)

    def by_pairs(self, z: Any, other: Any, edges: Any) -> torch.Tensor:
        return torch.einsum("ehc,hc->eh", torch.cat((z[edges[0]], other[edges[1]]), -1), self.pair)

    def by_products(self, z: Any, other: Any, edges: Any) -> torch.Tensor:
        return (z.index_select(0, edges[0]) * other.index_select(0, edges[1])).sum(-1) * 0.4

    def index_add(self, z: Any, scores: Any, edges: Any) -> torch.Tensor:
        scores = scores.exp()
        total = z.new_zeros(z.shape[0], self.heads).index_add(0, edges[1], scores)
        weights = scores / (total[edges[1]] + 1e-12)
        return z.new_zeros(z.shape).index_add_(0, edges[1], z[edges[0]] * weights.unsqueeze(-1))

    def scatter(self, z: Any, scores: Any, edges: Any) -> torch.Tensor:
        places = edges[1].view(-1, 1).expand_as(scores)
        start = z.new_zeros(z.shape[:2])
        largest = start.scatter_reduce(0, places, scores, "amax", include_self=False)
        scores = (scores - largest.index_select(0, edges[1])).exp()
        weights = scores / start.scatter_add(0, places, scores).gather(0, places)
        sent = z.index_select(0, edges[0]) * weights[..., None]
        return torch.zeros_like(z).scatter_add_(0, edges[1].view(-1, 1, 1).expand_as(sent), sent)

    def index_put(self, z: Any, scores: Any, edges: Any) -> torch.Tensor:
        sent = z[edges[0]] * scores.sigmoid().unsqueeze(-1)
        return torch.zeros_like(z).index_put((edges[1],), sent, accumulate=True)

    def dense(self, z: Any, scores: Any, edges: Any) -> torch.Tensor:
        nodes = z.shape[0]
        table = z.new_full((nodes, nodes, self.heads), -30.0).index_put((edges[1], edges[0]), scores)
        return torch.einsum("ijh,jhc->ihc", table.softmax(1), z)


SPELLINGS = [
    *((scores, "index_add") for scores in ("by_vectors", "by_one_vector", "by_pairs", "by_products")),
    *(("by_vectors", sums) for sums in ("scatter", "index_put", "dense")),
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("path", ["eager", "fx", "export"])
@pytest.mark.parametrize(("scores", "sums"), SPELLINGS)
def test_heads_and_their_widths_are_removed(scores, sums, path):
    model = randomise(Attention(scores, sums), 1).eval()
    kinds = {group.kind for group in fxprune.analyze(model, (X, EDGES), path=path).groups if group.name == "source"}
    assert kinds == {"blocks", "block width"}
    small = fxprune.transform(model, (X, EDGES), ratio=0.5, path=path)
    record = fxprune.record(small)
    assert record.after["source.weight"] == (2 * 3, 5)
    assert record.exact
    assert record.error <= 1e-9
    reference = fxprune.masked(model, record.zeroed).double()
    edges = EDGES[:, torch.tensor([3, 1, 0, 5, 7, 6, 2, 4])].flip(0)  # another graph
    assert relative_error(small.double()(X.double(), edges), reference(X.double(), edges)) < 1e-9
