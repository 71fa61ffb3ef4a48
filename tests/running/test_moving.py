"""Second moments of convolutions by differences, against the sums over all rows."""

from __future__ import annotations

import pytest
import torch

from fxprune.running.moving import BLOCK, MovingSquares, symmetric_product, worth_moving
from fxprune.running.products import Convolution

CASES = {
    "grouped": (4, 6, (40,), (5,), Convolution((1,), (2,), (1,), False, (0,), 2)),
    "dilated": (4, 6, (40,), (5,), Convolution((1,), (2,), (3,), False, (0,), 1)),
    "strided elsewhere": (3, 4, (20, 7), (5, 3), Convolution((1, 2), (2, 1), (2, 1), False, (0, 0), 2)),
    "second dimension": (3, 4, (7, 30), (2, 3), Convolution((1, 1), (1, 1), (1, 2), False, (0, 0), 1)),
    "transposed": (3, 4, (12, 9), (5, 3), Convolution((2, 2), (2, 1), (1, 1), True, (1, 1), 2)),
    "three dimensions": (
        2,
        4,
        (5, 20, 6),
        (2, 4, 2),
        Convolution((1, 1, 1), (0, 0, 1), (1, 2, 1), False, (0, 0, 0), 1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_differences_give_the_sum_over_all_rows(name: str) -> None:
    count, channels, space, taps, form = CASES[name]
    x = torch.randn(count, channels, *space, dtype=torch.float64)
    sizes = (channels, 8 // form.groups) if form.transposed else (8, channels // form.groups)
    weight = torch.randn(*sizes, *taps, dtype=torch.float64)
    y = x.new_zeros(form.shape(x, weight))
    moving = form.moving(x, weight)
    assert moving is not None
    for some in x.split(2):
        moving.add(some)
    wanted = sum(rows.mT @ rows for rows, _ in form.rows(x, y, weight))
    torch.testing.assert_close(moving.total(), wanted, rtol=1e-12, atol=1e-12 * float(wanted.abs().max()))


def test_rows_are_summed_before_there_are_more_than_inputs() -> None:
    moving = MovingSquares(3, 1)
    x = torch.randn(1, 40, 2, 30, dtype=torch.float64)
    for some in x.split(8, 1):
        moving.add(some)
        assert sum(rows.shape[1] for rows, _ in moving._rows) <= 2 * 2
    rows = x[0].unfold(2, 3, 1).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    torch.testing.assert_close(moving.total()[0], rows.mT @ rows)


def test_strides_and_short_lines_take_the_rows() -> None:
    weight = torch.zeros(8, 4, 3)
    assert Convolution((2,), (0,), (1,), False, (0,), 1).moving(torch.zeros(2, 4, 99), weight) is None
    assert Convolution((1,), (0,), (1,), False, (0,), 1).moving(torch.zeros(2, 4, 8), weight) is None
    assert not worth_moving(1, 1000)
    assert not worth_moving(3, 8)
    assert worth_moving(64, 128)


@pytest.mark.parametrize("size", [3, BLOCK, BLOCK + 5, 2 * BLOCK])
def test_a_symmetric_product_is_the_whole_product(size: int) -> None:
    x, weights = torch.randn(2, 7, size, dtype=torch.float64), torch.rand(2, 7, 1, dtype=torch.float64)
    torch.testing.assert_close(symmetric_product(x, x * weights), (x * weights).mT @ x)
    torch.testing.assert_close(symmetric_product(x), x.mT @ x)
