"""A part with attention whose scale is written in every way: a number, an attribute, a size, a tensor, a method."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from networks_layers import Choices
from networks_parts import part
from networks_sizes import Heads
from torch import Tensor, nn


class Scores(nn.Module):
    """Scores of heads of width d, in a layer of its own."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.d_k = d

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.d_k)


@part("scale")
class Scale(Heads):
    """Attention whose scale is a number of the constructor, of an attribute, of a shape, or a tensor."""

    kinds = (
        "constant attribute sqrt-attribute sqrt-shape shape sdpa sdpa-scale fourth query tensor inner config "
        "inverse-root buffer parameter property method in-place numpy rsqrt einsum added key fourth-shape module"
    )

    def more(self, choose: Choices, h: int, d: int) -> None:
        self.norm = choose.of("norm", "none none layer cosine")
        self.heads_way = choose.of("heads", "minus unflatten product shape")
        self.scale, self.inner = d**-0.5, h * d
        self.config = SimpleNamespace(head_dim=d, heads=h)
        if self.way == "buffer":
            self.register_buffer("factor", torch.tensor(d**-0.5))
        elif self.way == "parameter":
            self.factor = nn.Parameter(torch.full((h, 1, 1), d**-0.5))
        elif self.way == "module":
            self.scores = Scores(d)
        if self.norm == "layer":
            self.q_norm, self.k_norm = nn.LayerNorm(d), nn.LayerNorm(d)

    @property
    def rate(self) -> float:
        return float(1.0 / math.sqrt(self.head_dim))

    def root(self) -> float:
        return float(np.sqrt(self.head_dim))

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

    def scaled(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, where the scale is theirs."""
        if self.way == "query":
            return q * self.head_dim**-0.5, k
        if self.way == "key":
            return q, k / math.sqrt(k.shape[-1])
        if self.way == "in-place":
            q = q.clone()
            q *= self.head_dim**-0.5
            return q, k
        if self.way == "fourth":
            return q * self.head_dim**-0.25, k * self.head_dim**-0.25
        if self.way == "fourth-shape":
            return q / math.sqrt(math.sqrt(q.shape[-1])), k / math.sqrt(math.sqrt(k.shape[-1]))
        return q, k

    def rated(self, q: Tensor, k: Tensor, scores: Tensor) -> Tensor:
        """Scores, where the scale is theirs."""
        numbers: dict[str, Callable[[], Any]] = {
            "constant": lambda: self.scale,
            "attribute": lambda: self.head_dim**-0.5,
            "sqrt-attribute": lambda: 1 / math.sqrt(self.head_dim),
            "sqrt-shape": lambda: 1.0 / math.sqrt(q.shape[-1]),
            "shape": lambda: 1.0 / q.size(-1) ** 0.5,
            "inner": lambda: (self.inner // self.num_heads) ** -0.5,
            "config": lambda: self.config.head_dim**-0.5,
            "inverse-root": lambda: pow(q.shape[3], -0.5),
            "buffer": lambda: self.factor,
            "parameter": lambda: self.factor,
            "property": lambda: self.rate,
            "method": lambda: 1 / self.root(),
            "numpy": lambda: float(1 / np.sqrt(k.shape[-1])),
            "rsqrt": lambda: torch.tensor(float(self.head_dim), dtype=q.dtype).rsqrt(),
            "tensor": lambda: 1 / torch.sqrt(torch.tensor(k.shape[-1], dtype=k.dtype)),
        }
        return scores * numbers[self.way]() if self.way in numbers else scores

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.way == "sdpa":
            return F.scaled_dot_product_attention(q, k, v)
        if self.way == "sdpa-scale":
            return F.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5)
        if self.way == "module":
            return self.scores(q, k).softmax(-1) @ v
        if self.way == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
            return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        if self.way == "added":
            bias = torch.eye(q.shape[2], dtype=q.dtype)
            return (torch.add(bias, q @ k.transpose(-2, -1), alpha=self.head_dim**-0.5)).softmax(-1) @ v
        q, k = self.scaled(q, k)
        return self.rated(q, k, q @ k.transpose(-2, -1)).softmax(-1) @ v

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (self.apart(layer(x)) for layer in (self.q, self.k, self.v))
        if self.norm == "layer":
            q, k = self.q_norm(q), self.k_norm(k)
        elif self.norm == "cosine":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return self.out(self.attended(q, k, v).transpose(1, 2).reshape(b, n, -1))
