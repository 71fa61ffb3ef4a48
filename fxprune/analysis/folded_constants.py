"""The constants of removed channels, where they stand in the smaller model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class FoldedConstants:
    """The numbers that change besides sizes, in float64 and at their new size.

    values: parameter, by all its names -> its new numbers.
    biases: a layer, or "%node" of a function, that had none -> its bias.
    maps: node -> what is added to its result, [out_channels, height, width].
    """

    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    biases: Mapping[str, torch.Tensor] = field(default_factory=dict)
    maps: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def exact(self) -> dict[str, torch.Tensor]:
        """Every parameter and buffer that changes or is new, before it is rounded to its type."""
        biases = {bias_name(place): bias for place, bias in self.biases.items()}
        return {**self.values, **biases, **{f"{node}_map": values for node, values in self.maps.items()}}


def bias_name(place: str) -> str:
    """The name of the bias of a layer, or of a "%node"."""
    return f"{place[1:]}_bias" if place.startswith("%") else f"{place}.bias"
