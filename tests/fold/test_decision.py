"""The choice of carriers, on readings that are made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fxprune.channels.groups import Axis
from fxprune.channels.solve import solve
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector
from fxprune.fold.changes import Changes
from fxprune.fold.decision import Decision
from fxprune.fold.reading import ProductReading, ReadConstants

SIZE = 3


def reading_of(vector: Vector, weight: str, constants: Sequence[float]) -> ProductReading:
    """A product without a bias that reads a dimension; its first slots are these constants."""
    count = len(constants)
    planes = torch.tensor(constants, dtype=torch.float64)[:, None]
    columns = torch.ones(1, count, 1, dtype=torch.float64)
    return ProductReading(
        at=weight,
        why="it depends on the input",
        vector=vector,
        bad=np.arange(SIZE) >= count,
        constants=ReadConstants(np.arange(count), planes, np.ones(count, dtype=bool), columns),
        reads=np.ones((1, SIZE), dtype=bool),
        weight=weight,
    )


def decide(terms: Terms, vectors: Sequence[Vector], readings: Sequence[ProductReading], removed: list[int]) -> Decision:
    """The decision about some removed channels, numbered one dimension after the other."""
    axes = [Axis(f"{number}.weight", 0, vector, (SIZE, 2)) for number, vector in enumerate(vectors)]
    findings: Any = SimpleNamespace(solution=solve(terms, axes))
    flags = findings.solution.no_channel()
    flags[removed] = True
    shapes = {reading.weight: torch.Size([1, SIZE]) for reading in readings}
    decision = Decision(findings, flags, lambda _: None, Changes(maps=False, places=frozenset(), shapes=shapes))
    decision.settle(readings)
    return decision


def test_the_carrier_is_large_enough_for_every_reading() -> None:
    """The first channel is tiny for one reading only, and this is not the last one."""
    terms = Terms()
    vector = terms.fresh(SIZE)
    readings = [reading_of(vector, "a", [1.0, 4000.0]), reading_of(vector, "b", [2.0, 2.0])]
    decision = decide(terms, [vector], readings, [0, 1])
    assert decision.carriers.tolist() == [False, True, False]
    assert decision.removed.tolist() == [True, False, False]


def test_a_weight_with_two_readings_takes_only_what_both_give() -> None:
    """The weight would carry a constant of the first input; the second input loses nothing."""
    terms = Terms()
    first, second = terms.fresh(SIZE), terms.fresh(SIZE)
    for order in (slice(None), slice(None, None, -1)):
        readings = [reading_of(first, "shared", [1.0, 2.0]), reading_of(second, "shared", [1.0, 2.0])][order]
        decision = decide(terms, [first, second], readings, [0])
        assert not decision.removed.any()
        why = "shared is shared by readings that would change it differently"
        assert decision.reasons == {0: f"read by shared: {why}"}
    assert decide(terms, [first, second], [reading_of(first, "own", [1.0, 2.0])], [0]).removed.tolist()[0]
