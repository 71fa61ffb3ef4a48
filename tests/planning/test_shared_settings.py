"""Settings that count several dimensions, and the channels that are kept so that these stay equally wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np

from fxprune.analysis.marked_integers import Sizing
from fxprune.channels.groups import Axis
from fxprune.channels.solve import solve
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector
from fxprune.planning.shared_settings import keep_equal_widths


def size_of(vector: Vector, **options: Any) -> Sizing:
    return Sizing(Fraction(1), vector, "view", **options)


def findings_of(terms: Terms, vectors: Sequence[Vector], settings: Mapping[str, Sequence[Sizing]]) -> Any:
    """The channels of some dimensions, numbered one dimension after the other, and the sizings of each setting."""
    axes = [Axis(f"{number}.weight", 0, vector, (vector.size, 2)) for number, vector in enumerate(vectors)]
    named = {("block", name, None): list(sizings) for name, sizings in settings.items()}
    return SimpleNamespace(solution=solve(terms, axes), settings=named)


def removed_after(findings: Any, removed: Sequence[int], scores: Sequence[float]) -> tuple[list[int], tuple[str, ...]]:
    flags = findings.solution.no_channel()
    flags[list(removed)] = True
    reasons = keep_equal_widths(findings, flags, np.array(scores, dtype=np.float64))
    return np.flatnonzero(flags).tolist(), reasons


def test_the_narrower_dimension_keeps_its_best_channels() -> None:
    terms = Terms()
    a, b = terms.fresh(4), terms.fresh(4)
    findings = findings_of(terms, [a, b], {"width": [size_of(a), size_of(b)]})
    left, reasons = removed_after(findings, [0, 1, 2, 4], [1, 3, 2, 9, 0, 9, 9, 9])
    assert left == [0, 4]
    assert reasons == ("block.width is one number for several widths: they keep as many channels",)


def test_a_channel_that_gives_more_slots_than_are_missing_stays_removed() -> None:
    """The best channel has two slots; only one is missing, which the next one gives."""
    terms = Terms()
    a, b = terms.fresh(3).take(np.array([0, 0, 1, 2])), terms.fresh(4)
    findings = findings_of(terms, [a, b], {"width": [size_of(a), size_of(b)]})
    assert removed_after(findings, [0, 1, 3, 4], [5, 1, 2, 9, 9, 9, 9])[0] == [0, 3, 4]


def test_a_dimension_that_another_setting_widens_is_looked_at_again() -> None:
    terms = Terms()
    a, b, c = terms.fresh(4), terms.fresh(4), terms.fresh(4)
    settings = {"first": [size_of(a), size_of(b)], "second": [size_of(b), size_of(c)]}
    assert removed_after(findings_of(terms, [a, b, c], settings), [0, 4], [0] * 12)[0] == []


def test_parts_of_dimensions_and_quotients_need_no_equal_widths() -> None:
    terms = Terms()
    a, b, c = terms.fresh(4), terms.fresh(4), terms.fresh(4)
    settings = {"part": [size_of(a), size_of(b, until=2)], "quotient": [size_of(a), size_of(c, under=b)]}
    assert removed_after(findings_of(terms, [a, b, c], settings), [0, 7, 11], [0] * 12) == ([0, 7, 11], ())
