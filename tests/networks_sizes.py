"""Parts that keep, compute, compare and hand on sizes: containers, layers in them, products, shapes, methods."""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict, UserDict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
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


class Slots:
    """A config object without a dict."""

    __slots__ = ("head_dim", "heads", "width")

    def __init__(self, **values: int) -> None:
        for name, value in values.items():
            setattr(self, name, value)


@dataclasses.dataclass
class Outer:
    """A config with another one inside."""

    inner: Config


class UserSizes(UserDict[str, int]):
    """A mapping of a class of its own."""


CONTAINERS = {
    "dataclass": Config,
    "frozen": Frozen,
    "namedtuple": Named,
    "dict": dict,
    "namespace": SimpleNamespace,
    "object": Settings,
    "nested": lambda **values: {"sizes": [SimpleNamespace(**values)]},
    "attributes": SimpleNamespace,
    "ordered": OrderedDict,
    "slots": Slots,
    "outer": lambda **values: Outer(Config(**values)),
    "user": UserSizes,
    "listed": lambda **values: list(values.items()),
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
        sizes = self.sizes.inner if self.way == "outer" else dict(self.sizes) if self.way == "listed" else sizes
        return sizes[name] if isinstance(sizes, Mapping) else getattr(sizes, name)

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


@part("registered")
class Registered(Part):
    """Layers and tensors in the containers of torch, in plain ones, or made by a loop over a list of widths."""

    kinds = "modules named sequential parameters parameter-dict buffers chosen items loop"

    def make(self, choose: Choices, x: Tensor) -> None:
        c, w = x.shape[-1], choose.number(3, 6)
        self.way = choose.of("way", self.kinds)
        self.widths = [c, w, w + 1, c]
        pairs = list(itertools.pairwise(self.widths))
        layers = [nn.Linear(a, b) for a, b in pairs]
        if self.way in ("named", "chosen", "items"):
            self.layers = nn.ModuleDict({f"layer{n}": layer for n, layer in enumerate(layers)})
            self.order = list(self.layers)
        elif self.way == "sequential":
            self.layers = nn.Sequential(*layers)
        elif self.way == "parameters":
            self.weights = nn.ParameterList(nn.Parameter(torch.zeros(b, a)) for a, b in pairs)
        elif self.way == "parameter-dict":
            self.weights = nn.ParameterDict({str(n): nn.Parameter(torch.zeros(b, a)) for n, (a, b) in enumerate(pairs)})
        else:
            self.layers = nn.ModuleList(layers)
        if self.way == "buffers":
            for n, width in enumerate(self.widths[1:]):
                self.register_buffer(f"gain{n}", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "parameters":
            return self.multiplied(x, list(self.weights))
        if self.way == "parameter-dict":
            return self.multiplied(x, [self.weights[str(n)] for n in range(len(self.weights))])
        if self.way in ("named", "chosen"):
            for name in self.order:
                x = torch.tanh(self.layers[name](x))
            return x
        if self.way == "items":
            for layer in dict(self.layers.items()).values():
                x = torch.tanh(layer(x))
            return x
        for n, layer in enumerate(self.layers):
            if self.way == "loop" and x.shape[-1] != self.widths[n]:
                raise ValueError("another width")
            x = torch.tanh(layer(x))
            if self.way == "buffers":
                x = x * getattr(self, f"gain{n}")
        return x

    @staticmethod
    def multiplied(x: Tensor, weights: list[Tensor]) -> Tensor:
        for weight in weights:
            x = torch.tanh(x @ weight.mT)
        return x


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
