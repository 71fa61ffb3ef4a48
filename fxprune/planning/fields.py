"""The fields of a plan: indices per parameter and dimension, in the numbering of the model that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fxprune.analysis.findings import Findings
from fxprune.arguments import checks_arguments
from fxprune.capture.output_paths import OutputPath
from fxprune.depth.dropped import Dropped
from fxprune.errors import PlanError
from fxprune.planning.factors import Factor
from fxprune.planning.sizes import Size
from fxprune.planning.structure import Structure

Removed = dict[str, dict[int, list[int]]]
"""Parameter or buffer -> {dimension: sorted indices}."""


PlanT = TypeVar("PlanT", bound="PlanFields")


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
    dropped: tuple[Dropped, ...] = ()
    norms: str = "kept"

    @checks_arguments("findings")
    def made_from(self: PlanT, findings: Findings) -> PlanT:
        """This plan, which remembers the analysis that it was made from, for edits. Copies and files do not."""
        object.__setattr__(self, "_findings", findings)
        return self

    @property
    def findings(self) -> Findings | None:
        """The analysis that the plan was made from; None for a plan from a file or a record."""
        return self.__dict__.get("_findings")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_findings"}

    def known_structure(self, what: str) -> Structure:
        """The structure. Raises `PlanError` if there is none. what: for the message, what is unknown without it."""
        if self.structure is None:
            raise PlanError(
                f"the plan does not know {what}",
                why="it was written by hand, so no shapes are known",
                do="take one from analysis.plan(...), or record(small).plan",
            )
        return self.structure
