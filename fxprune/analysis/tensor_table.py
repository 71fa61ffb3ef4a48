"""The tensors of an analysed model by name, and their dimensions with vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from fxprune.channels.groups import Axis


@dataclass(frozen=True, eq=False)
class TensorTable:
    """Every parameter, buffer and tensor constant of a model, each once.

    by_name: first name -> the tensor.
    aliases: first name of a tied tensor -> its other names.
    axes: the dimensions that may shrink, also those of constants.
    """

    by_name: Mapping[str, torch.Tensor]
    aliases: Mapping[str, Sequence[str]]
    axes: tuple[Axis, ...]

    def names_of(self, name: str) -> tuple[str, ...]:
        """All names of a tensor. `name` is its first name."""
        return (name, *self.aliases.get(name, ()))

    @cached_property
    def first_names(self) -> Mapping[str, str]:
        """Other name of a tied tensor -> its first name."""
        return {alias: name for name, aliases in self.aliases.items() for alias in aliases}

    def first_name(self, name: str) -> str:
        """The first name of a tensor. `name` is any of its names."""
        return self.first_names.get(name, name)
