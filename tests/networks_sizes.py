"""Parts that keep, compute, compare and hand on sizes: containers, caches, products, shapes, scales, methods."""

from __future__ import annotations

import dataclasses
import functools
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from networks_layers import Choices
from networks_parts import Part, part
from torch import Tensor, nn


@dataclasses.dataclass
class Config:
    width: int
    heads: int
    head_dim: int


@dataclasses.dataclass(frozen=True)
class Frozen:
    width: int
    heads: int
    head_dim: int


class Named(NamedTuple):
    width: int
    heads: int
    head_dim: int


class Settings:
    """A config object as packages have them."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)
        self.label = "settings"


CONTAINERS = {
    "dataclass": Config,
    "frozen": Frozen,
    "namedtuple": Named,
    "dict": dict,
    "namespace": SimpleNamespace,
    "object": Settings,
    "nested": lambda **values: {"sizes": [SimpleNamespace(**values)]},
    "attributes": SimpleNamespace,
}


class Heads(Part):
    """Values of h heads of width d, mixed over positions, and put together again.

    A subclass says how the sizes are written.
    """

    kinds = "plain"

    def make(self, choose: Choices, x: Tensor) -> None:
        c, h, d = x.shape[-1], choose.number(2, 3), choose.number(2, 4)
        self.way = choose.of("way", self.kinds)
        self.num_heads, self.head_dim = h, d
        self.q, self.k, self.v = (nn.Linear(c, h * d) for _ in range(3))
        self.out = nn.Linear(h * d, c)
        self.more(choose, h, d)

    def more(self, choose: Choices, h: int, d: int) -> None:
        """Make what the part has besides."""

    def mixed(self, v: Tensor) -> Tensor:
        """Mix [b, h, n, d] over positions."""
        return v + v.mean(2, keepdim=True).tanh()


@part("container")
class Container(Heads):
    """Sizes in a dict, data class, named tuple, config object."""

    kinds = " ".join(CONTAINERS)

    def more(self, choose: Choices, h: int, d: int) -> None:
        self.use = choose.of("use", "heads split reshape compare minus")
        self.sizes = CONTAINERS[self.way](width=h * d, heads=h, head_dim=d)
        if self.way != "attributes":
            del self.num_heads, self.head_dim

    def size(self, name: str) -> int:
        if self.way == "attributes":
            return {"width": self.num_heads * self.head_dim, "heads": self.num_heads, "head_dim": self.head_dim}[name]
        sizes = self.sizes["sizes"][0] if self.way == "nested" else self.sizes
        return sizes[name] if isinstance(sizes, dict) else getattr(sizes, name)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.v(x)
        if self.use == "heads":
            y = y.view(b, n, self.size("heads"), self.size("head_dim")).transpose(1, 2)
            y = self.mixed(y).transpose(1, 2).reshape(b, n, self.size("width"))
        elif self.use == "split":
            y = torch.cat(torch.cat([y, self.q(x)], -1).split(self.size("width"), -1)[::-1], -1)
            y = y[..., : self.size("width")] * y[..., self.size("width") :]
        elif self.use == "reshape":
            y = y.reshape(b * n, self.size("width")).tanh().view(b, n, -1)
        elif self.use == "compare":
            if y.shape[-1] != self.size("width"):
                raise ValueError("another width")
            y = torch.tanh(y)
        else:
            y = self.mixed(y.view(b, n, -1, self.size("head_dim")).transpose(1, 2)).transpose(1, 2).flatten(2)
        return self.out(y)


@part("product")
class Product(Heads):
    """Products, quotients and sums of sizes."""

    kinds = "product inner quotient thrice twice sum minus property star"

    def more(self, choose: Choices, h: int, d: int) -> None:
        self.inner = h * d
        if self.way == "thrice":
            self.qkv = nn.Linear(self.q.in_features, 3 * h * d)

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        if self.way == "thrice":
            q, k, y = self.qkv(x).split(self.num_heads * self.head_dim, dim=-1)
            y = y * torch.sigmoid(q + k)
        elif self.way == "twice":
            y = torch.cat([self.v(x), self.q(x)], -1)
            a, b_ = y[..., : self.inner], y[..., self.inner : 2 * self.inner]
            y = a * b_
        elif self.way == "sum":
            y = torch.cat([self.v(x), self.q(x)], -1)
            a, b_ = y.split([self.inner, self.num_heads * self.head_dim], -1)
            y = a + b_.tanh()
        else:
            y = self.v(x)
        if self.way == "quotient":
            y = y.view(b, n, self.num_heads, self.inner // self.num_heads)
        elif self.way == "minus":
            y = y.view(b, n, -1, self.head_dim)
        elif self.way == "star":
            y = y.view(*y.shape[:-1], self.num_heads, -1)
        else:
            y = y.view(b, n, self.num_heads, self.head_dim)
        y = self.mixed(y.transpose(1, 2)).transpose(1, 2)
        if self.way == "inner":
            y = y.reshape(b, n, self.inner)
        elif self.way == "property":
            y = y.reshape(b, n, self.width)
        elif self.way == "minus":
            y = y.reshape(b, n, -1)
        else:
            y = y.reshape(b, n, self.num_heads * self.head_dim)
        return self.out(y)


@part("compared")
class Compared(Heads):
    """Widths that are compared, and nothing else."""

    kinds = "assert raise larger ternary chained tuple layer between"

    def more(self, choose: Choices, h: int, d: int) -> None:
        self.channels = h * d
        self.other = nn.Linear(h * d, h * d)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.v(x))
        if self.way == "assert":
            assert y.shape[-1] == self.channels, "another width"
        elif self.way == "raise":
            if y.size(-1) != self.channels:
                raise ValueError(f"{y.size(-1)} instead of {self.channels}")
        elif self.way == "larger":
            if y.shape[-1] > self.channels:
                y = y[..., : self.channels]
        elif self.way == "ternary":
            y = self.other(y) if y.shape[-1] == self.channels else y
        elif self.way == "chained":
            assert 0 < y.shape[-1] <= self.channels
        elif self.way == "tuple":
            assert y.shape == (*x.shape[:2], self.channels)
        elif self.way == "layer":
            assert self.other.in_features == y.shape[-1]
            y = self.other(y)
        else:
            y = self.other(y)
            assert y.shape[-1] == self.num_heads * self.head_dim
        return self.out(y)


@part("from_shape")
class FromShape(Heads):
    """The width of one tensor, taken from another one."""

    kinds = "keys weight out-features halves like queries"

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        k, v = self.k(x), self.v(x)
        if self.way == "halves":
            half = self.q(x).shape[-1]
            y = torch.cat([k, v], -1)
            return self.out(y[..., :half].tanh() * y[..., half:])
        if self.way == "like":
            return self.out(torch.sigmoid(v).reshape(k.shape) * k)
        width = k.shape[-1] // self.num_heads
        if self.way == "weight":
            width = self.k.weight.shape[0] // self.num_heads
        elif self.way == "out-features":
            width = self.v.out_features // self.num_heads
        elif self.way == "queries":
            width = self.q(x).size(2) // self.num_heads
        y = self.mixed(v.view(b, n, self.num_heads, width).transpose(1, 2)).transpose(1, 2)
        return self.out(y.reshape(b, n, self.num_heads * width))


@part("scale")
class Scale(Heads):
    """Attention whose scale is a number of the constructor, of an attribute, or of a shape."""

    kinds = "constant attribute sqrt-attribute sqrt-shape shape sdpa sdpa-scale fourth query tensor inner"

    def more(self, choose: Choices, h: int, d: int) -> None:
        self.norm = choose.of("norm", "none none layer cosine")
        self.heads_way = choose.of("heads", "minus unflatten product shape")
        self.scale, self.inner = d**-0.5, h * d
        if self.norm == "layer":
            self.q_norm, self.k_norm = nn.LayerNorm(d), nn.LayerNorm(d)

    def apart(self, y: Tensor) -> Tensor:
        b, n, c = y.shape
        if self.heads_way == "minus":
            y = y.view(b, n, self.num_heads, -1)
        elif self.heads_way == "unflatten":
            y = y.unflatten(-1, (self.num_heads, self.head_dim))
        elif self.heads_way == "product":
            y = y.reshape(b, n, self.num_heads, self.head_dim)
        else:
            y = y.reshape(b, n, self.num_heads, c // self.num_heads)
        return y.transpose(1, 2)

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.way == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        if self.way == "sdpa-scale":
            return F.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5)
        if self.way == "query":
            q = q * self.head_dim**-0.5
        elif self.way == "fourth":
            q, k = q * self.head_dim**-0.25, k * self.head_dim**-0.25
        scores = q @ k.transpose(-2, -1)
        if self.way == "constant":
            scores = scores * self.scale
        elif self.way == "attribute":
            scores = scores * self.head_dim**-0.5
        elif self.way == "sqrt-attribute":
            scores = scores / math.sqrt(self.head_dim)
        elif self.way == "sqrt-shape":
            scores = scores / math.sqrt(q.shape[-1])
        elif self.way == "shape":
            scores = scores * (1.0 / q.size(-1) ** 0.5)
        elif self.way == "tensor":
            scores = scores / torch.sqrt(torch.tensor(k.shape[-1], dtype=k.dtype))
        elif self.way == "inner":
            scores = scores * (self.inner // self.num_heads) ** -0.5
        return scores.softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (self.apart(layer(x)) for layer in (self.q, self.k, self.v))
        if self.norm == "layer":
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.norm == "cosine":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return self.out(self.attended(q, k, v).transpose(1, 2).reshape(b, n, -1))


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


@part("cached")
class Cached(Heads):
    """Sizes and tables out of functions that remember their results."""

    kinds = "halves per-head product positions scale attribute"

    def more(self, choose: Choices, h: int, d: int) -> None:
        self.inner = h * d

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
        width = per_head(self.inner, self.num_heads) if self.way == "per-head" else self.head_dim
        y = self.mixed(y.view(b, n, self.num_heads, width).transpose(1, 2)).transpose(1, 2)
        return self.out(y.reshape(b, n, self.width if self.way == "attribute" else product(self.num_heads, width)))


@part("methods")
class Methods(Heads):
    """Sizes that other methods read: some of them forward calls, some of them nobody does."""

    kinds = "called static unread bound inherited kept"

    def more(self, choose: Choices, h: int, d: int) -> None:
        self.inner = h * d
        self.project = self.v.forward if self.way == "bound" else None

    @staticmethod
    def joined(y: Tensor, heads: int) -> Tensor:
        b, _, n, d = y.shape
        return y.transpose(1, 2).reshape(b, n, heads * d)

    def heads(self, y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def forward_halves(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.v(x).split((self.inner // 2, self.inner - self.inner // 2), -1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.v(x)
        if self.way in ("called", "inherited"):
            y = self.joined(self.mixed(self.heads(y)), self.num_heads)
        elif self.way == "static":
            y = Methods.joined(y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2), self.num_heads)
        elif self.way == "kept":
            self.last_width = y.shape[-1]
            y = torch.tanh(y.view(*x.shape[:2], self.last_width))
        return self.out(y)
