"""Parts of networks of which a traced graph, or a change of sizes, can lose the behaviour: what they share.

A part maps [b, n, c] to [b, n, c']. It learns its sizes from the tensor that enters it, and any list of numbers is
valid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from networks_layers import Choices, Layer
from torch import Tensor, nn


class PartChoices(Choices):
    """The choices of parts, counted apart from those of other blocks."""

    offered: ClassVar[set[str]] = set()


class Part(nn.Module):
    """One part. `features`: what it chose, as words."""

    def __init__(self, layer: Layer, x: Tensor) -> None:
        super().__init__()
        choose = PartChoices(layer.kind, layer.picks)
        self.features = choose.made
        choose.made.append(layer.kind)
        self.make(choose, x)

    def make(self, choose: Choices, x: Tensor) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


PARTS: dict[str, Callable[[Layer, Tensor], Part]] = {}


def part(name: str) -> Callable[[type[Part]], type[Part]]:
    """Register a kind of part."""

    def register(made: type[Part]) -> type[Part]:
        PARTS[name] = made
        return made

    return register
