"""The part of a plan about branches that are gone: the modules that take the place of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

IDENTITY, ZEROS, CHAIN, PASSES, GIVES = KINDS = ("identity", "zeros", "chain", "passes", "gives zeros")
"""The kinds of replacements. All but the last two are modules of torch."""

ONE_ZERO = 1
"""The part of a form that is a single zero, which an addition repeats to the shape of the other operand."""

ARGUMENT = "argument"
"""The first entry of a part of a form that is another argument."""

OWN = (PASSES, GIVES)
"""The kinds that are modules of this package, so that a pickled model needs it."""


@dataclass(frozen=True)
class Replacement:
    """A module that takes the place of another one.

    kind: "identity" is `nn.Identity`; "zeros" is an `nn.Threshold` that every number is below; "chain" is an
        `nn.Sequential` of `children`, which the other one had; "passes" gives on the argument `source` (its position or
        keyword); "gives zeros" gives zeros like its first tensor.
    form: for the last two, the result: 0 stands for the tensor, null for None, a list for a tuple; 1 of "gives zeros"
        for a single zero of as many dimensions;
        ["argument", key] for another argument that "passes" gives on, by its position or keyword.
    """

    path: str
    kind: str
    children: tuple[str, ...] = ()
    source: int | str = 0
    form: Any = 0


@dataclass(frozen=True)
class Dropped:
    """A residual branch that a plan removes whole.

    name: of the branch. at: the module whose forward adds it, and the line.
    replaced: the modules in its place; empty where those of a branch that is named later cover them.
    tensors: the parameters and buffers that go -> their shapes.
    """

    name: str
    at: str
    replaced: tuple[Replacement, ...] = field(default=(), repr=False)
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False, hash=False)

    @property
    def is_layer(self) -> bool:
        """True for a whole layer, which goes with what stands behind its additions."""
        return len(self.replaced) == 1 and self.replaced[0].path == self.name == self.at

    def __str__(self) -> str:
        return self.name


def gone_with(path: str, dropped: Sequence[Dropped]) -> Dropped | None:
    """The branch with which a module went; None for a module that stays.

    A block around the addition stays: the module in its place gives the same results as the block without the branch.
    """
    for one in dropped:
        added_in = one.at.partition(" (")[0]
        for replaced in one.replaced:
            stay = [f"{replaced.path}.{child}" for child in replaced.children]
            if path == replaced.path and _within(added_in, path):
                continue
            if _within(path, replaced.path) and not any(_within(path, child) for child in stay):
                return one
    return None


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")
