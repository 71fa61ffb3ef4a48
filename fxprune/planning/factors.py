"""The factors of a plan: weights that are multiplied, so that a scale is right which code computes from a width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fxprune.planning.ranges import spans_of, text_of


@dataclass(frozen=True)
class Factor:
    """A part of a parameter that is multiplied, in the numbering of the model that the plan is for.

    tensor: its name. dim, slots: the slots of a dimension, without removed ones; None where all carry the factor.
    factor: the number.

    >>> print(Factor("attn.q.weight", 0, (0, 1, 2, 3), 0.5))
    attn.q.weight[0] 0-3: times 0.5
    """

    tensor: str
    dim: int
    slots: tuple[int, ...] | None
    factor: float

    def __str__(self) -> str:
        where = "" if self.slots is None else f"[{self.dim}] {text_of(spans_of(self.slots))}"
        return f"{self.tensor}{where}: times {self.factor:.6g}"


class Products:
    """Factors of several plans, multiplied part by part.

    shapes: of the parameters, in the numbering of the first plan. removed: parameter -> dimension -> indices that go.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], removed: Mapping[str, Mapping[int, list[int]]]) -> None:
        self._shapes, self._removed = shapes, removed
        self._whole: dict[str, float] = {}
        self._parts: dict[str, dict[int, npt.NDArray[Any]]] = {}

    def add(self, factor: Factor, kept: npt.NDArray[np.int64] | None = None) -> None:
        """Multiply by one factor. kept: the index in the first plan's numbering of every slot that `factor` knows."""
        self._whole.setdefault(factor.tensor, 1.0)
        parts = self._parts.setdefault(factor.tensor, {})
        if factor.slots is None:
            self._whole[factor.tensor] *= factor.factor
            return
        slots = np.asarray(factor.slots) if kept is None else kept[np.asarray(factor.slots)]
        size = self._shapes[factor.tensor][factor.dim]
        parts.setdefault(factor.dim, np.ones(size))[slots] *= factor.factor

    def factors(self) -> tuple[Factor, ...]:
        """The products, without those that are 1."""
        return tuple(factor for name in self._whole for factor in self._of(name))

    def _of(self, name: str) -> list[Factor]:
        whole, made = self._whole[name], []
        for dim, numbers in self._parts[name].items():
            stays = np.ones(len(numbers), dtype=bool)
            stays[self._removed.get(name, {}).get(dim, [])] = False
            found = np.unique(numbers[stays])
            if len(found) == 1:
                whole *= float(found[0])
                continue
            for number in found.tolist():
                if number * whole != 1:
                    slots = np.flatnonzero(stays & (numbers == number)).tolist()
                    made.append(Factor(name, dim, tuple(slots), number * whole))
            whole = 1.0
        return made + ([Factor(name, 0, None, whole)] if whole != 1 else [])
