"""The parameters, buffers and tensor constants of a model, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from fxprune.channels.groups import Axis


@dataclass(frozen=True, eq=False)
class TensorTable:
    """Every parameter, buffer and tensor constant once.

    by_name: each under its first name. aliases: the first name of a tied tensor -> its other names.
    axes: the dimensions that may shrink, those of constants included.
    """

    by_name: Mapping[str, torch.Tensor]
    aliases: Mapping[str, Sequence[str]]
    axes: tuple[Axis, ...]

    def names_of(self, name: str) -> tuple[str, ...]:
        """All names of a tensor, by its first one."""
        return (name, *self.aliases.get(name, ()))

    @cached_property
    def first_names(self) -> Mapping[str, str]:
        """The first name of a tied tensor, by each of its other names."""
        return {alias: name for name, aliases in self.aliases.items() for alias in aliases}

    def first_name(self, name: str) -> str:
        """The first name of a tensor, by any of its names."""
        return self.first_names.get(name, name)
