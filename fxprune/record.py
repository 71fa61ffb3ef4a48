"""What happened to a model, kept with the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from fxprune.cost import Cost
from fxprune.errors import FxpruneError
from fxprune.report import record_data, view
from fxprune.report.views import checked

_KEY = "fxprune_record"


@dataclass(frozen=True)
class Record:
    """How a small model came about.

    path: the rung of the ladder that made it: "fx", "eager", "export" or "hooks".
    why_not: rung -> why it was not taken, for those that were tried before.
    removed: original parameter or buffer -> {dimension: sorted indices, in the original's numbering}.
    exact: whether the small model equals the masked original; else some statistic is taken over fewer channels.
    before, after: tensor -> shape, of every parameter and buffer.
    reasons: what stayed although it was asked for, which statistics changed, which unused parameters were left out.
    training: the modules that were in training mode when the graph was traced; "" is the model.
    error: the relative error against the reference, None where it was not compared.
    norms: "preserve" where statistics count the original width as far as that is possible, else "kept".
    cost: of the original and of the small model, None where it was not counted.
    """

    path: str
    removed: Mapping[str, Mapping[int, list[int]]]
    exact: bool
    before: Mapping[str, tuple[int, ...]]
    after: Mapping[str, tuple[int, ...]]
    reasons: tuple[str, ...] = field(default=())
    training: tuple[str, ...] = field(default=())
    error: float | None = None
    why_not: Mapping[str, str] = field(default_factory=dict)
    norms: str = "kept"
    cost: tuple[Cost, Cost] | None = None

    @property
    def params(self) -> tuple[int, int]:
        """Elements of all tensors before and after."""
        return sum(map(math.prod, self.before.values())), sum(map(math.prod, self.after.values()))

    def report(self, format: str = "text") -> str:
        """Each layer before and after, the totals, the way, the proof and the notes: docs/report.md.

        format: "text", "markdown" or "json". Raises `InputError` for any other.
        """
        checked(format)
        return view(record_data(self), format)


def record(small: nn.Module) -> Record:
    """The record of a model that `transform` returned (or of a deep copy of it).

    Raises `FxpruneError` for any other model.
    """
    found: Any = small.meta.get(_KEY) if isinstance(small, fx.GraphModule) else small.__dict__.get(_KEY)
    if not isinstance(found, Record):
        raise FxpruneError(
            f"this {type(small).__name__} has no record",
            why="it was not made by transform",
            do="pass what transform returned",
        )
    return found


def attach(small: nn.Module, made: Record) -> None:
    """Keep the record with the model; deep copies keep it too."""
    if isinstance(small, fx.GraphModule):
        small.meta[_KEY] = made
    else:
        small.__dict__[_KEY] = made
