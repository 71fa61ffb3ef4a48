"""The fractions and positions that operations are called with, in the original and in the small model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.proof.called_numbers import CalledNumbers
from fxprune.proof.shapes import _rank


def called(*numbers: float) -> CalledNumbers:
    made = CalledNumbers()
    made.seen["layer", 1, "aten::mul", 1] = numbers
    return made


def test_numbers_are_equal_up_to_rounding() -> None:
    assert called(0.5, math.nan).same_numbers(called(0.5 + 1e-12, math.nan), 1e-9)
    assert not called(0.5).same_numbers(called(0.5 + 1e-6), 1e-9)


def test_operations_of_one_run_only_and_other_counts_of_numbers_are_not_compared() -> None:
    assert called(0.5).same_numbers(CalledNumbers(), 1e-9)
    assert CalledNumbers().same_numbers(called(0.5), 1e-9)
    assert called(0.5).same_numbers(called(0.25, 0.5), 1e-9)


def test_the_scale_that_attention_computes_is_one_of_the_numbers() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    numbers, module = CalledNumbers(), Attention()
    with numbers.inside(module, "attention"):
        module(torch.randn(1, 2, 3, 16))
    assert (0.25,) in numbers.seen.values()


@pytest.mark.parametrize(("position", "rank"), [(None, 0), (0, 0), (2, 1), (-1, 2), (-3, 1), (-9, 0), (9, 3)])
def test_a_position_becomes_the_number_of_kept_slots_before_it(position: int | None, rank: int) -> None:
    assert _rank(position, np.array([True, False, True, True])) == rank
