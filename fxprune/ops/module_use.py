"""A call of a module, as functions registered with `recounts` see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fxprune.channels.groups import Bools, Removal
from fxprune.channels.vector import Vector
from fxprune.ops.registry import Operand


@dataclass(frozen=True)
class Use:
    """A call of a module in the original model, and the channels that are removed.

    input, output: the operands of the first tensor argument and of the result. counts: argument of an operation in the
        module -> the dimensions that it counts. All three are None if the module was never called.
    vectors: parameter or buffer below the module, by its name from there -> dimension -> vector.
    """

    removal: Removal
    input: Operand | None = None
    output: Any = None
    counts: Mapping[str, tuple[Vector, ...]] | None = None
    vectors: Mapping[str, Mapping[int, Vector]] = field(default_factory=dict)

    def counted(self, argument: str) -> tuple[int, ...] | None:
        """The new value of a counted argument: one size per dimension. None if the operation did not count it."""
        counts = self.counts or {}
        return self.removal.shape(counts[argument]) if argument in counts else None

    def input_size(self, dim: int) -> int | None:
        """The new size of a dimension of the module's input, None if it is unknown."""
        return None if self.input is None or self.input.ndim == 0 else self.removal.count(self.input.dim(dim))

    def kept(self, parameter: str, dim: int, size: int) -> Bools:
        """Flags of the slots of a parameter in a dimension, True for those that stay. size: how many there were."""
        vector = self.vectors.get(parameter, {}).get(dim)
        kept = None if vector is None else self.removal.kept(vector)
        return np.ones(size, dtype=bool) if kept is None else kept

    def impossible(self, why: str, parameters: Mapping[str, int]) -> SizeError:
        """The error to raise where the module cannot have its new sizes.

        parameters: parameter -> the dimension that has to keep its size, so that the module can be rewritten.
        """
        found = (self.vectors.get(name, {}).get(dim) for name, dim in parameters.items())
        return SizeError(why, tuple(vector for vector in found if vector is not None))


def stored_weight(module: Any) -> Any:
    """The weight of a module. Where a hook of torch computes it (masks, weight norm): the parameter it comes from."""
    for name in ("weight_orig", "weight_v"):
        if module._parameters.get(name) is not None:
            return module._parameters[name]
    return module.weight


class SizeError(ValueError):
    """A module cannot have its new sizes. vectors: the dimensions that have to keep their size."""

    def __init__(self, why: str, vectors: tuple[Vector, ...]) -> None:
        self.vectors = vectors
        super().__init__(why)
