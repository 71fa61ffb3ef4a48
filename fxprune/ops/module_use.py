"""A call of a module, as the functions of `recounts` see it."""

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
    """A call of a module in the graph, and what is removed.

    input, output: the first tensor that entered, and the result. counts: what its operations counted, by argument. All
        None where the module is not called.
    vectors: the name of each parameter and buffer below the module, relative to it -> the vector of each dimension.
    """

    removal: Removal
    input: Operand | None = None
    output: Any = None
    counts: Mapping[str, tuple[Vector, ...]] | None = None
    vectors: Mapping[str, Mapping[int, Vector]] = field(default_factory=dict)

    def counted(self, argument: str) -> tuple[int, ...] | None:
        """The new value of a counted argument, None where the operation did not count it."""
        counts = self.counts or {}
        return self.removal.shape(counts[argument]) if argument in counts else None

    def input_size(self, dim: int) -> int | None:
        """The new size of a dimension of the module's input."""
        return None if self.input is None or self.input.ndim == 0 else self.removal.count(self.input.dim(dim))

    def kept(self, parameter: str, dim: int, size: int) -> Bools:
        """Of the `size` slots that a parameter of the module had in a dimension: True for those that are left."""
        vector = self.vectors.get(parameter, {}).get(dim)
        kept = None if vector is None else self.removal.kept(vector)
        return np.ones(size, dtype=bool) if kept is None else kept

    def impossible(self, why: str, parameters: Mapping[str, int]) -> SizeError:
        """The error to raise where the module cannot have its new sizes: the named dimensions of these stay."""
        found = (self.vectors.get(name, {}).get(dim) for name, dim in parameters.items())
        return SizeError(why, tuple(vector for vector in found if vector is not None))


def stored_weight(module: Any) -> Any:
    """The weight, or what an old hook of torch (masks, weight and spectral norm) computes it from in every forward."""
    for name in ("weight_orig", "weight_v"):
        if module._parameters.get(name) is not None:
            return module._parameters[name]
    return module.weight


class SizeError(ValueError):
    """A module cannot express its new sizes; `vectors` are the dimensions that had better stay what they are."""

    def __init__(self, why: str, vectors: tuple[Vector, ...]) -> None:
        self.vectors = vectors
        super().__init__(why)
