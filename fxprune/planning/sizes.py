"""Recounted sizes, and the places where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("attribute", "argument", "constant", "class", "node")


EPSILONS = ("variance_epsilon", "eps", "epsilon")
"""The names that a norm may give to its epsilon."""

WIDE_LAYERS = "fxprune.rewrite.norm_layers."
"""The beginning of the classes of layers that go on counting the original width."""


@dataclass(frozen=True)
class Size:
    """A number that follows from the removed channels, and the place where it stands.

    kind: "attribute", a number or several in an attribute of a module; "argument", of a node of the graph; "constant",
        the shape of a tensor that is neither parameter nor buffer; "class", of a module that became another one;
        "node", one that was added to the graph or erased.
    at: the module, the node or the tensor. name: the attribute or the argument, else "".
    old, new: what stood there, and what stands there now. Of an attribute these are the values, else JSON or text.

    >>> print(Size("attribute", "conv1", "out_channels", 64, 32), Size("argument", "view", "args[2]", 64, 32), sep=", ")
    conv1.out_channels: 64 -> 32, %view args[2]: 64 -> 32
    """

    kind: str
    at: str
    name: str
    old: Any
    new: Any

    @property
    def place(self) -> tuple[str, str, str]:
        """The place where it stands, whatever its value."""
        return self.kind, self.at, self.name

    def __str__(self) -> str:
        if self.kind in ("argument", "node"):
            where = f"%{self.at} {self.name}".rstrip()
        else:
            where = ".".join(part for part in (self.at, self.name) if part).replace(".[", "[")
        return f"{where}: {self.old} -> {self.new}"


def norms_by_sizes(sizes: Sequence[Size]) -> str:
    """The norms of a plan whose file does not say them: only norms="preserve" changes such a class or an epsilon."""
    for size in sizes:
        wide = size.kind == "class" and str(size.new).startswith(WIDE_LAYERS)
        if wide or (size.kind == "attribute" and size.name in EPSILONS):
            return "preserve"
    return "kept"
