"""What comes back for a class of my own? The same class, smaller.

Caches, data classes as results and `forward` stay as their author wrote them. The attributes that count something
(the 6 in `head_dim`) get their new values.

    python examples/own_class.py
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

import fxprune


@dataclasses.dataclass
class Output:
    """The result of forward."""

    logits: Tensor
    cache: Cache


class Cache:
    """Keys and values per layer, as a decoder collects them."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []


class Block(nn.Module):
    """Attention with fewer heads for keys and values than for queries, and two linear layers, both in a residual."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.head_dim, self.groups = width // num_heads, num_heads // num_kv_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * num_kv_heads * self.head_dim)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        """Tokens [batch, time, width] to the same; appends its keys and values to the cache."""
        q = self.q(x).view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)
        k, v = (t.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2) for t in self.kv(x).chunk(2, -1))
        cache.layers.append((k, v))
        k, v = (t.repeat_interleave(self.groups, 1) for t in (k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(torch.relu(self.up(x)))


class Decoder(nn.Module):
    """A small language model."""

    def __init__(self, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, width)
        self.blocks = nn.ModuleList(Block(width, 8, 4) for _ in range(layers))
        self.head = nn.Linear(width, 100)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Output:
        """Token numbers [batch, time] to logits [batch, time, vocabulary]."""
        cache = cache or Cache()
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, cache)
        return Output(self.head(x), cache)


def main() -> None:
    """Prune heads, head width, hidden width and the residual stream by 30 %, and prove it."""
    torch.manual_seed(0)
    model = Decoder().eval()
    inputs = {"ids": torch.randint(0, 100, (2, 12))}
    small = fxprune.transform(model, inputs, ratio=0.3)
    record = fxprune.record(small)
    print(type(small).__name__, "by the path", record.path)
    print(small.blocks[0])
    print("head_dim", model.blocks[0].head_dim, "->", small.blocks[0].head_dim)
    for reason in record.reasons:
        print("note:", reason)
    other = {"ids": torch.randint(0, 100, (3, 7))}
    assert fxprune.verify(model, small, other) < 1e-9
    print("keys of the first layer:", tuple(small(**other).cache.layers[0][0].shape))


if __name__ == "__main__":
    main()
