"""What happened to a model, kept with the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from fxprune.errors import FxpruneError

_KEY = "fxprune_record"


@dataclass(frozen=True)
class Record:
    """How a small model came about.

    path: the rung of the ladder that made it ("fx").
    removed: original parameter or buffer -> {dimension: sorted indices, in the original's numbering}.
    exact: whether the small model equals the masked original; else some statistic is taken over fewer channels.
    before, after: tensor -> shape, of every parameter and buffer.
    reasons: what stayed although it was asked for, which statistics changed, which unused parameters were left out.
    error: the relative error against the reference, None where it was not compared.
    """

    path: str
    removed: Mapping[str, Mapping[int, list[int]]]
    exact: bool
    before: Mapping[str, tuple[int, ...]]
    after: Mapping[str, tuple[int, ...]]
    reasons: tuple[str, ...] = field(default=())
    error: float | None = None

    @property
    def params(self) -> tuple[int, int]:
        """Elements of all tensors before and after."""
        from math import prod

        return sum(prod(s) for s in self.before.values()), sum(prod(s) for s in self.after.values())

    def report(self) -> str:
        """Shapes before and after as a table of plain text."""
        from fxprune.report import record_report

        return record_report(self)


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


def attach(small: fx.GraphModule, made: Record) -> None:
    """Keep the record with the model; deep copies keep it too."""
    small.meta[_KEY] = made
