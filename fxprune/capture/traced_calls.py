"""The events of a module that is traced, in a form that can be compared with those of another trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Proxy


@dataclass(eq=False)
class TracedCall:
    """A module whose forward runs. state: that of torch when it began. events: what was made since then."""

    path: str
    state: tuple[Any, ...]
    events: list[Any] = field(default_factory=list)
    numbers: dict[Any, int] = field(default_factory=dict)

    def numbered(self, value: Any) -> Any:
        """An argument with nodes replaced by numbers, in the order in which this call meets them."""
        if isinstance(value, Proxy):
            value = value.node
        if isinstance(value, fx.Node):
            return ("node", self.numbers.setdefault(value, len(self.numbers)))
        if isinstance(value, (tuple, list)):
            return (type(value).__name__, *map(self.numbered, value))
        if isinstance(value, Mapping):
            return ("dict", *((key, self.numbered(part)) for key, part in value.items()))
        if isinstance(value, slice):
            return ("slice", *map(self.numbered, (value.start, value.stop, value.step)))
        return TracedConstant(value)


@dataclass(eq=False)
class TracedConstant:
    """A constant that compares equal to one with the same type and value."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TracedConstant) or type(self.value) is not type(other.value):
            return False
        if isinstance(self.value, torch.Tensor):
            return self.value is other.value or (
                self.value.shape == other.value.shape
                and not self.value.is_meta
                and torch.equal(self.value, other.value)
            )
        return bool(self.value is other.value or self.value == other.value)

    __hash__ = None  # type: ignore[assignment]
