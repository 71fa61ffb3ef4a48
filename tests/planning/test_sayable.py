"""Widths that are accepted together: only those grow that matter, and as little as possible."""

from __future__ import annotations

from collections.abc import Mapping

from fxprune.planning.sayable import nearest_accepted


def test_accepted_widths_stay() -> None:
    assert nearest_accepted({0: 3, 1: 5}, {0: 8, 1: 8}, lambda kept: True) == {0: 3, 1: 5}


def test_only_the_width_that_matters_grows() -> None:
    found = nearest_accepted({0: 33, 1: 7}, {0: 48, 1: 9}, lambda kept: kept[0] % 6 == 0)
    assert found == {0: 36, 1: 7}


def test_of_two_widths_the_smaller_share_grows() -> None:
    def divides(kept: Mapping[int, int]) -> bool:
        return kept[0] % kept[1] == 0

    assert nearest_accepted({0: 3500, 1: 24, 2: 5}, {0: 4096, 1: 32, 2: 6}, divides) == {0: 3504, 1: 24, 2: 5}
    assert nearest_accepted({0: 4096, 1: 24}, {0: 4096, 1: 32}, divides) == {0: 4096, 1: 32}


def test_widths_that_are_given_do_not_grow() -> None:
    assert nearest_accepted({0: 33}, {0: 33}, lambda kept: kept[0] % 6 == 0) is None
