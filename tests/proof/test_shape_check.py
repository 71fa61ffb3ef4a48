"""The proof by shapes on small models that are written by hand: what it sees, and what it leaves alone.

Each network has a layer of 8 slots, of which the first two go. The small model is the same class with 6 slots, and with
other numbers in its code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.scopes import Scopes
from fxprune.fold import resolve_plan
from fxprune.proof.shapes import Changed, ContradictionError, ShapeCheck, _rank, _same_list

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
BEFORE, AFTER = 8, 6


class Inner(nn.Module):
    """Code with a number in it."""

    def __init__(self, code: Callable[..., Tensor], *numbers: Any) -> None:
        super().__init__()
        self.code, self.numbers = code, numbers

    def forward(self, x: Tensor) -> Tensor:
        return self.code(x, *self.numbers)


class Total(nn.Module):
    """The sum of what there is."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1).sum(1)


def network(width: int, code: Callable[..., Tensor], *numbers: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), Inner(code, *numbers), Total())


def check(code: Callable[..., Tensor], before: tuple[Any, ...], after: tuple[Any, ...], **options: Any) -> ShapeCheck:
    """Check the small model that has the numbers `after`, against the original that has the numbers `before`."""
    original, small = network(BEFORE, code, *before), network(AFTER, code, *after)
    analysis = fxprune.analyze(original, X, path="eager")
    removal = resolve_plan(analysis, analysis.plan(masks={"0": torch.arange(BEFORE) > 1})).removal
    assert removal.removed.sum() == BEFORE - AFTER
    scopes = Scopes(small)
    checking = ShapeCheck(removal, scopes, options.get("replaced", set()))
    (checking.expected,) = (seen for name, seen in analysis.walked[0].observations.items() if name == "forward")
    scopes.node("forward")
    with torch.no_grad(), scopes.watching(), checking:
        small(X)
    return checking


def scaled(x: Tensor, scale: float) -> Tensor:
    return x * scale


def picked(x: Tensor, index: int) -> Tensor:
    return x.select(1, index)


def rolled(x: Tensor, shift: int) -> Tensor:
    return x.roll(shift, 1)


def sliced(x: Tensor, start: int | None, stop: int | None) -> Tensor:
    return x[:, start:stop].relu()


def test_what_is_right_is_no_contradiction() -> None:
    made = check(scaled, (0.5,), (0.5,))
    assert made.changed == []


def test_another_fraction_is_noted() -> None:
    (changed,) = check(scaled, (BEFORE**-0.5,), (AFTER**-0.5,)).changed
    assert isinstance(changed, Changed)
    assert (changed.key[0], changed.key[2]) == ("1", "aten::mul")
    assert changed.before == pytest.approx((BEFORE**-0.5,))
    assert changed.after == pytest.approx((AFTER**-0.5,))
    assert "aten::mul inside is called with (0.408" in str(changed)


def test_a_result_inside_of_another_shape_is_a_contradiction() -> None:
    with pytest.raises(ContradictionError) as caught:
        check(lambda x, size: x[:, :size].relu(), (8,), (5,))
    assert "gives shape (3, 5) in the small model, and has to give (3, 6)" in str(caught.value)
    (vector,) = caught.value.vectors
    assert vector.size == BEFORE


def test_modules_that_run_other_operations_are_left_out() -> None:
    assert check(scaled, (0.5,), (0.25,), replaced={"1"}).changed == []
    assert check(lambda x, size: x[:, :size].relu(), (8,), (5,), replaced={"1", "2"}).changed == []


@pytest.mark.parametrize(("before", "after", "right"), [(3, 1, True), (7, 5, True), (-1, -1, True), (4, 4, False)])
def test_a_position_is_the_number_of_kept_slots_before_it(before: int, after: int, right: bool) -> None:
    if right:
        check(picked, (before,), (after,))
    else:
        with pytest.raises(ContradictionError, match=f"has index {after}, which was {before} before slots went"):
            check(picked, (before,), (after,))


class Gated(nn.Module):
    """Adds one slot to the results."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.a, self.gate, self.b = nn.Linear(4, BEFORE), Inner(picked, index), nn.Linear(BEFORE, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h) + self.gate(h)[:, None]


@pytest.mark.parametrize("index", [-1, 3, 0])
def test_a_class_that_picks_one_slot_is_kept(index: int) -> None:
    model = Gated(index).double().eval()
    small = fxprune.transform(model, X.double(), ratio=0.5)
    assert type(small) is Gated
    assert small.a.out_features < BEFORE
    assert torch.allclose(small(X.double()), fxprune.masked(model, fxprune.record(small).removed)(X.double()))


@pytest.mark.parametrize(
    ("before", "after", "right"),
    [((None, 5), (None, 3), True), ((4, None), (2, None), True), ((-3, -1), (-3, -1), True), ((3, 6), (2, 5), False)],
)
def test_so_are_the_bounds_of_a_slice(before: tuple[Any, ...], after: tuple[Any, ...], right: bool) -> None:
    if right:
        check(sliced, before, after)
    else:
        with pytest.raises(ContradictionError, match="has start 2, which was 3 before slots went"):
            check(sliced, before, after)


@pytest.mark.parametrize(("before", "after", "right"), [(3, 3, True), (7, 6, True), (-3, -1, True), (7, 5, False)])
def test_so_is_the_shift_of_a_roll(before: int, after: int, right: bool) -> None:
    if right:
        check(rolled, (before,), (after,))
    else:
        with pytest.raises(ContradictionError, match="has shifts"):
            check(rolled, (before,), (after,))


@pytest.mark.parametrize(("position", "rank"), [(None, 0), (0, 0), (2, 1), (-1, 2), (-3, 1), (-9, 0), (9, 3)])
def test_a_rank_counts_the_kept_slots(position: int | None, rank: int) -> None:
    assert _rank(position, np.array([True, False, True, True])) == rank


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ([0, 2, 3], [0, 1, 2], True),
        ([3, 0], [2, 0], True),
        ([0, 1, 2], [0, 1], True),  # slot 1 is gone, and its entry with it
        ([-1, -4], [2, 0], True),
        ([0, 2], [0, -2], True),
        ([0, 2], [0, 2], False),
        ([0, 2], [0], False),
        ([0, 2], None, False),
    ],
)
def test_a_list_of_positions_is_renumbered(old: list[int], new: list[int] | None, same: bool) -> None:
    kept = np.array([True, False, True, True])
    assert _same_list(np.array(old), None if new is None else np.array(new), kept) is same
