"""The fields of a plan: indices per parameter and dimension, in the numbering of the model that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from fxprune.capture.output_paths import OutputPath
from fxprune.errors import PlanError
from fxprune.planning.factors import Factor
from fxprune.planning.sizes import Size
from fxprune.planning.structure import Structure

Removed = dict[str, dict[int, list[int]]]
"""Parameter or buffer -> {dimension: sorted indices}."""


@dataclass(frozen=True)
class PlanFields:
    """The fields of a `Plan`; their meaning is explained there."""

    removed: Removed
    reasons: tuple[str, ...] = field(default=())
    zeroed: Removed | None = None
    biases: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = field(default=(), repr=False)
    structure: Structure | None = field(default=None, repr=False)
    path: str = ""
    versions: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    factors: tuple[Factor, ...] = ()
    outputs: tuple[OutputPath, ...] | None = None

    def known_structure(self, what: str) -> Structure:
        """The structure. Raises `PlanError` if there is none. what: for the message, what is unknown without it."""
        if self.structure is None:
            raise PlanError(
                f"the plan does not know {what}",
                why="it was written by hand, so no shapes are known",
                do="take one from analysis.plan(...), or record(small).plan",
            )
        return self.structure


PlanT = TypeVar("PlanT", bound=PlanFields)
