"""One row of the op table, and what rows of several families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

IMAGE = (2, 11, 5, 7)
EVEN = (2, 12, 5, 7)
VOLUME = (2, 11, 3, 5, 7)
SEQUENCE = (2, 11, 7)
TOKENS = (2, 5, 11)
FLAT = (2, 11)
SUMS = "sums over the channels; the shrink test compares the numbers"
RANDOM = "the operation is random"
ENTRIES = "how many entries there are is data, which fake tensors do not have"
INSIDE = "a layer inside the row sums over the channels; the shrink test compares the numbers"


@dataclass(frozen=True)
class OpCase:
    """One row.

    make: a fresh module that is the operation.
    shape: of the tensor that enters it. axis, out: the channel axis of that tensor and of the result; out is None
        where the result has none.
    expect: "exact", "inexact" or "refused". says: for the last, the operator and the reason that the report gives.
    loses: parameters that must get smaller, each as "name[dim]". "producer" is the layer before the operation, left
        out where `alone`: there the operation reads the graph input.
    takes_input: the operation gets the graph input as a second argument.
    train: the model is in training mode.
    mixes: why the transfer test has nothing to compare. ties: why the rule ties more slots than the operation does.
    unruled: whether the operation has no rule at all.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = IMAGE
    expect: str = "exact"
    says: tuple[str, ...] = ()
    axis: int = 1
    out: int | None = 1
    loses: tuple[str, ...] = ("producer.weight[0]",)
    alone: bool = False
    indices: int = 0
    takes_input: bool = False
    train: bool = False
    mixes: str = ""
    ties: str = ""
    unruled: bool = False

    def __post_init__(self) -> None:
        assert self.expect in ("exact", "inexact", "refused")
        assert bool(self.says) == (self.expect == "refused"), self.name


class Op(nn.Module):
    """A function of tensors as a module: what it needs besides its input is a parameter, a buffer or a layer."""

    def __init__(self, function: Callable[..., torch.Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        self.parts = list(parts)
        for name, part in parts.items():
            if isinstance(part, tuple):
                setattr(self, name, nn.Parameter(torch.randn(part)))
            elif isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part())

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs, **{name: getattr(self, name) for name in self.parts})


def fn(function: Callable[..., torch.Tensor], **parts: Any) -> Callable[[], nn.Module]:
    """Makes `Op`s: a shape becomes a random parameter, a tensor a buffer, a callable a layer."""
    return lambda: Op(function, **parts)


CONV: dict[str, Any] = {"mixes": SUMS, "loses": ("producer.weight[0]", "op.weight[0]", "op.weight[1]")}
GROUPED: dict[str, Any] = {
    "shape": EVEN,
    "mixes": SUMS,
    "loses": ("producer.weight[0]", "op.weight[0]", "op.weight[1]"),
}
LAST: dict[str, Any] = {"shape": TOKENS, "axis": -1, "out": -1}
GONE: dict[str, Any] = {"out": None, "mixes": SUMS}


def into_halves(h: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    out[:, :4].copy_(h[:, :4])
    out[:, 4:].copy_(h[:, 4:].sin())
    return out


PERMUTATION = [3, 0, 7, 10, 1, 9, 2, 8, 4, 6, 5]


def joined(parts: Sequence[torch.Tensor], count: int = 2) -> torch.Tensor:
    """The first `count` parts in reverse order, so that an operation that does nothing would be noticed."""
    return torch.cat([parts[k] for k in reversed(range(count))], 1)


def difference(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] - parts[1]


def gated(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] * torch.sigmoid(parts[1])


STATISTIC: dict[str, Any] = {"expect": "inexact", "out": None, "mixes": "the axis is gone"}
