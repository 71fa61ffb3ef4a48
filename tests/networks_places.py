"""A part whose sizes stand in unusual places: in the class, in a closure, in a default, in numpy, in another module."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from networks_layers import Choices
from networks_parts import part
from networks_sizes import Heads
from torch import Tensor, nn


class Inner(nn.Module):
    """Gets its sizes with every call."""

    def forward(self, y: Tensor, heads: int, *, head_dim: int) -> Tensor:
        return y.view(*y.shape[:2], heads, head_dim).tanh().flatten(2)


def columns(width: int) -> Callable[[Tensor], Tensor]:
    """A function that knows its width."""
    return lambda y: y.reshape(-1, width).tanh()


@part("places")
class Places(Heads):
    """Sizes in unusual places."""

    kinds = (
        "class numpy argument partial closure norm parameter len getattr setter default vars star zip assigned "
        "list enumerated divmod walrus float reduce"
    )
    width_of_class: ClassVar[int] = 6

    def more(self, choose: Choices, h: int, d: int) -> None:
        self.inner = h * d
        if self.way == "class":
            c = self.q.in_features
            self.v, self.out = nn.Linear(c, self.width_of_class), nn.Linear(self.width_of_class, c)
        elif self.way == "numpy":
            self.inner = np.int64(h * d)
        elif self.way == "argument":
            self.layer = Inner()
        elif self.way == "partial":
            self.norm = functools.partial(F.layer_norm, normalized_shape=(h * d,))
        elif self.way == "closure":
            self.function = columns(h * d)
        elif self.way in ("norm", "parameter"):
            self.gain = nn.Parameter(torch.zeros(h * d))
        elif self.way == "list":
            self.parts = [d] * h

    @property
    def doubled(self) -> int:
        return 2 * self.inner

    @doubled.setter
    def doubled(self, value: int) -> None:
        self.inner = value // 2

    def forward(self, x: Tensor) -> Tensor:
        return self.out(getattr(self, f"by_{self.way}", self.plain)(self.v(x)))

    def plain(self, y: Tensor) -> Tensor:
        return torch.tanh(y)

    def by_class(self, y: Tensor) -> Tensor:
        return y.reshape(-1, self.width_of_class).tanh().view(*y.shape)

    def by_numpy(self, y: Tensor) -> Tensor:
        return y.reshape(-1, int(self.inner)).tanh().view(*y.shape)

    def by_argument(self, y: Tensor) -> Tensor:
        return self.layer(y, self.num_heads, head_dim=self.head_dim)

    def by_partial(self, y: Tensor) -> Tensor:
        return self.norm(y)

    def by_closure(self, y: Tensor) -> Tensor:
        return self.function(y).view(*y.shape)

    def by_norm(self, y: Tensor) -> Tensor:
        return F.layer_norm(y, (self.inner,), self.gain)

    def by_parameter(self, y: Tensor) -> Tensor:
        return y.reshape(-1, len(self.gain)).tanh().view(*y.shape) * self.gain

    def by_len(self, y: Tensor) -> Tensor:
        return y.view(len(y), -1, len(self.v.weight) // self.num_heads, self.num_heads).flatten(2).tanh()

    def by_getattr(self, y: Tensor) -> Tensor:
        heads, width = (getattr(self, name) for name in ("num_heads", "head_dim"))
        return y.view(*y.shape[:-1], heads, width).cumsum(2).flatten(2)

    def by_setter(self, y: Tensor) -> Tensor:
        return torch.cat([y, y.tanh()], -1).view(*y.shape[:2], self.doubled)[..., : self.inner]

    def by_default(self, y: Tensor, heads: int | None = None) -> Tensor:
        return y.view(*y.shape[:2], heads or self.num_heads, -1).tanh().flatten(2)

    def by_vars(self, y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], vars(self)["num_heads"], vars(self)["head_dim"]).tanh().flatten(2)

    def by_star(self, y: Tensor) -> Tensor:
        shape = [self.num_heads, self.head_dim]
        return y.view(*y.shape[:2], *shape).tanh().reshape(*y.shape[:2], self.num_heads * self.head_dim)

    def by_zip(self, y: Tensor) -> Tensor:
        sizes = dict(zip(("heads", "width"), (self.num_heads, self.head_dim), strict=True))
        return y.unflatten(-1, (sizes["heads"], sizes["width"])).tanh().flatten(2)

    def by_assigned(self, y: Tensor) -> Tensor:
        self.last_width: Any = y.shape[-1] // self.num_heads
        return y.view(*y.shape[:2], self.num_heads, self.last_width).tanh().flatten(2)

    def by_list(self, y: Tensor) -> Tensor:
        return torch.cat([piece.tanh() for piece in y.split(self.parts, -1)], -1)

    def by_enumerated(self, y: Tensor) -> Tensor:
        heads = y.view(*y.shape[:2], self.num_heads, self.head_dim).unbind(2)
        return torch.cat([(n + 1) * head for n, head in enumerate(heads)], -1)

    def by_divmod(self, y: Tensor) -> Tensor:
        width, left = divmod(y.shape[-1], self.num_heads)
        assert left == 0
        return y.view(*y.shape[:2], self.num_heads, width).tanh().flatten(2)

    def by_walrus(self, y: Tensor) -> Tensor:
        return y.view(-1, (width := self.inner)).tanh().view(*y.shape[:2], width)

    def by_float(self, y: Tensor) -> Tensor:
        return y.view(*y.shape[:2], self.num_heads, int(y.shape[-1] / self.num_heads)).tanh().flatten(2)

    def by_reduce(self, y: Tensor) -> Tensor:
        width = functools.reduce(lambda a, b: a * b, (self.num_heads, self.head_dim))
        return y.reshape(-1, width).tanh().view(*y.shape[:2], width)
