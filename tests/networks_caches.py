"""A part whose sizes and tables come out of caches: of functions, of methods, of attributes, of a class."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
import torch.nn.functional as F
from networks_layers import Choices
from networks_parts import part
from networks_sizes import Heads
from torch import Tensor


@functools.cache
def halves(width: int) -> tuple[int, int]:
    return width // 2, width - width // 2


@functools.lru_cache(maxsize=8)
def per_head(width: int, heads: int) -> int:
    return width // heads


@functools.lru_cache
def product(heads: int, head_dim: int) -> int:
    return heads * head_dim


@functools.lru_cache(maxsize=4)
def positions(n: int, width: int) -> Tensor:
    return torch.linspace(-1.0, 1.0, n, dtype=torch.float64)[:, None].expand(n, width).sin()


@functools.cache
def scale_of(width: int) -> float:
    return width**-0.5


KEPT: dict[tuple[int, int], int] = {}
"""The results of `remembered`, by its arguments."""


def remembered(width: int, heads: int) -> int:
    if (width, heads) not in KEPT:
        KEPT[width, heads] = width // heads
    return KEPT[width, heads]


TABLES: dict[tuple[int, int], Tensor] = {}
"""The results of `table`, by its arguments."""


def table(n: int, width: int) -> Tensor:
    if (n, width) not in TABLES:
        TABLES[n, width] = torch.linspace(-1.0, 1.0, n, dtype=torch.float64)[:, None].cos().repeat(1, width)
    return TABLES[n, width]


@part("cached")
class Cached(Heads):
    """Sizes and tables out of functions that remember their results, or out of a table that grows."""

    kinds = "halves per-head product positions scale attribute dict table grown method default class evaluated"
    shared: ClassVar[dict[int, float]] = {}

    def more(self, choose: Choices, h: int, d: int) -> None:
        self.inner, self.longest, self.joined = h * d, 0, None

    @functools.lru_cache  # noqa: B019  # as packages have it
    def of_method(self, width: int) -> int:
        return width // self.num_heads

    def of_default(self, width: int, kept: dict[int, int] = {}) -> int:  # noqa: B006  # as packages have it
        return kept.setdefault(width, width // self.num_heads)

    def grown(self, y: Tensor) -> Tensor:
        """A table that is made again for a longer input."""
        if y.shape[1] > self.longest:
            self.longest = y.shape[1]
            self.steps = torch.linspace(0.0, 1.0, self.longest, dtype=torch.float64)[:, None].sin()
        return y * (1 + self.steps[: y.shape[1]])

    def evaluated(self, x: Tensor) -> Tensor:
        """A product of weights that evaluation makes once and training drops."""
        if self.training:
            self.joined = None
            return self.out(self.v(x))
        if self.joined is None:
            self.joined = (self.out.weight @ self.v.weight).detach()
        return F.linear(x, self.joined) + self.out(self.v.bias)

    @functools.cached_property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.v(x)
        if self.way == "halves":
            return self.out(torch.cat([part.tanh() for part in y.split(list(halves(self.inner)), -1)], -1))
        if self.way == "positions":
            return self.out(torch.tanh(y + positions(n, y.shape[-1])))
        if self.way == "scale":
            q, k = self.q(x), self.k(x)
            return self.out((q @ k.mT * scale_of(q.shape[-1])).softmax(-1) @ y)
        if self.way == "table":
            return self.out(y * table(n, y.shape[-1]))
        if self.way == "grown":
            return self.out(self.grown(y))
        if self.way == "class":
            return self.out(y * self.shared.setdefault(n, 1.0 / (n + 1)))
        if self.way == "evaluated":
            return self.evaluated(x)
        width = self.head_dim
        if self.way == "per-head":
            width = per_head(self.inner, self.num_heads)
        elif self.way == "dict":
            width = remembered(y.shape[-1], self.num_heads)
        elif self.way == "method":
            width = self.of_method(y.shape[-1])
        elif self.way == "default":
            width = self.of_default(self.inner)
        y = self.mixed(y.view(b, n, self.num_heads, width).transpose(1, 2)).transpose(1, 2)
        return self.out(y.reshape(b, n, self.width if self.way == "attribute" else product(self.num_heads, width)))
