"""Numbers that forward computes from settings and sizes, and the channels that are kept so that they fit."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fxprune.analysis.expressions import Expression
from fxprune.analysis.observed import Place
from fxprune.analysis.uses import Count, NumberUse, SizeComparison, Uses
from fxprune.channels.groups import Axis
from fxprune.channels.solve import solve
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector
from fxprune.planning.shared_settings import keep_equal_widths

AT = Place("forward", "block", "model.py:7")
NEXT = '; give them equal counts, or pass prefer="graph"'


def setting(name: str) -> Expression:
    return Expression.of(("block", name, ()))


def count(expression: Expression, vector: Vector, **options: Any) -> Count:
    return Count(expression, vector, AT, "view", **options)


def findings_of(terms: Terms, vectors: Sequence[Vector], *uses: NumberUse, **before: int) -> Any:
    """The channels of some dimensions, numbered one dimension after the other, and uses of their sizes."""
    axes = [Axis(f"{number}.weight", 0, vector, (vector.size, 2)) for number, vector in enumerate(vectors)]
    values = {("block", name, ()): value for name, value in before.items()}
    captured = SimpleNamespace(keeps_class=True)
    return SimpleNamespace(solution=solve(terms, axes), uses=Uses(uses, values), captured=captured)


@pytest.fixture
def terms() -> Terms:
    return Terms()


def removed_after(
    findings: Any, removed: Sequence[int], scores: Sequence[float] = ()
) -> tuple[list[int], tuple[str, ...]]:
    flags = findings.solution.no_channel()
    flags[list(removed)] = True
    reasons = keep_equal_widths(findings, flags, np.array(scores or [0] * len(flags), dtype=np.float64))
    return np.flatnonzero(flags).tolist(), reasons


def test_the_narrower_dimension_keeps_its_best_channels(terms: Terms) -> None:
    a, b = terms.fresh(4), terms.fresh(4)
    width = setting("width")
    findings = findings_of(terms, [a, b], count(width, a), count(width, b), width=4)
    left, reasons = removed_after(findings, [0, 1, 2, 4], [1, 3, 2, 9, 0, 9, 9, 9])
    assert left == [0, 4]
    assert reasons == (
        "block.width is one number for several widths: they keep as many channels "
        "(view in block (model.py:7) needs 1; view in block (model.py:7) needs 3)" + NEXT,
    )


def test_a_channel_that_gives_more_slots_than_are_missing_stays_removed(terms: Terms) -> None:
    """The best channel has two slots; only one is missing, which the next one gives."""
    a, b = terms.fresh(3).take(np.array([0, 0, 1, 2])), terms.fresh(4)
    width = setting("width")
    findings = findings_of(terms, [a, b], count(width, a), count(width, b), width=4)
    assert removed_after(findings, [0, 1, 3, 4], [5, 1, 2, 9, 9, 9, 9])[0] == [0, 3, 4]


def test_a_dimension_that_another_setting_widens_is_looked_at_again(terms: Terms) -> None:
    a, b, c = terms.fresh(4), terms.fresh(4), terms.fresh(4)
    first, second = setting("first"), setting("second")
    uses = [count(first, a), count(first, b), count(second, b), count(second, c)]
    assert removed_after(findings_of(terms, [a, b, c], *uses, first=4, second=4), [0, 4])[0] == []


def test_a_setting_that_is_half_of_a_width_keeps_that_width_even(terms: Terms) -> None:
    a, b = terms.fresh(8), terms.fresh(4)
    half = setting("half")
    findings = findings_of(terms, [a, b], count(half * 2, a), count(half, b), half=4)
    assert removed_after(findings, [0, 1, 2, 8, 9], range(12))[0] == [0, 1, 8]


def test_a_width_that_is_a_quotient_of_another_one_is_kept_equal_to_it(terms: Terms) -> None:
    """keys: 4 heads of 3; values: the same heads, and `keys.shape[-1] // heads` for their width."""
    heads, keys, values = terms.fresh(4), terms.fresh(3), terms.fresh(3)
    number = setting("heads")
    width = Expression.of(terms.merge([heads, keys])) / number
    findings = findings_of(terms, [heads, keys, values], count(number, heads), count(width, values), heads=4)
    assert removed_after(findings, [0, 1, 4, 8, 9], range(10)) == (
        [0, 1, 4, 8],
        (
            "block.heads is one number for several widths: they keep as many channels "
            "(view in block (model.py:7) needs 2; view in block (model.py:7) needs 1)" + NEXT,
        ),
    )


def test_a_product_lets_both_of_its_factors_shrink(terms: Terms) -> None:
    heads, width = terms.fresh(4), terms.fresh(6)
    both = setting("heads") * setting("width")
    uses = [count(setting("heads"), heads), count(setting("width"), width), count(both, terms.merge([heads, width]))]
    findings = findings_of(terms, [heads, width], *uses, heads=4, width=6)
    assert removed_after(findings, [0, 2, 5, 6, 7]) == ([0, 2, 5, 6, 7], ())


def test_parts_of_a_dimension_that_one_number_bounds_keep_as_many_channels(terms: Terms) -> None:
    a, b = terms.fresh(6), terms.fresh(3)
    bound = setting("bound")
    findings = findings_of(terms, [a, b], count(bound, a, until=3), count(bound, b), bound=3)
    assert removed_after(findings, [0, 1, 5, 6], range(9))[0] == [0, 5, 6]


def test_equal_sizes_that_forward_compares_stay_equal(terms: Terms) -> None:
    a, b = terms.fresh(4), terms.fresh(4)
    equal = SizeComparison(Expression.of(a) - Expression.of(b), "!=", False, AT)
    left, reasons = removed_after(findings_of(terms, [a, b], equal), [0, 1, 4], range(8))
    assert left == [0, 4]
    assert reasons == (
        "sizes are one number: they keep as many channels (the comparison by != in block (model.py:7) needs equal "
        "numbers, and they differ by 1)" + NEXT,
    )


def test_a_comparison_comes_out_as_it_did(terms: Terms) -> None:
    a = terms.fresh(6)
    wide = SizeComparison(Expression.of(a) - 4, ">=", True, AT)
    assert removed_after(findings_of(terms, [a], wide), [0, 1, 2, 3], range(6))[0] == [0, 1]
