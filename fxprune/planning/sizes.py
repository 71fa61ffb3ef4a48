"""Recounted sizes, and the places where they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KINDS = ("attribute", "argument", "constant", "class", "node")


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
