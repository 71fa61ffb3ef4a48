"""Factors of views and transpositions: as if every element carried its own, and no larger than needed."""

import itertools

import pytest
import torch

from fxprune.ops.factor_moves import reordered_factor, reshaped_factor

SHAPES = [(4, 6), (24,), (2, 2, 6), (2, 2, 3, 2), (4, 2, 3), (8, 3), (1, 4, 6), (4, 1, 6), (4, 6, 1), (3, 8)]


@pytest.mark.parametrize(("before", "after"), [*itertools.product(SHAPES, SHAPES)])
def test_a_view_hands_on_the_factor_of_each_element(before, after):
    for varying in itertools.product((True, False), repeat=len(after)):
        sizes = [size if varies else 1 for size, varies in zip(after, varying, strict=True)]
        factor = torch.rand(sizes)
        moved = reshaped_factor(factor, after, before)
        assert torch.equal(moved.expand(before).reshape(after), factor.expand(after)), (sizes, moved.shape)


def test_dimensions_along_which_a_factor_does_not_change_keep_the_size_1():
    assert reshaped_factor(torch.rand(1, 1, 3, 1), (2, 50, 3, 8), (2, 50, 24)).shape == (1, 1, 24)
    assert reshaped_factor(torch.rand(1, 1, 3, 1), (2, 50, 3, 8), (100, 3, 8)).shape == (1, 3, 1)
    assert reshaped_factor(torch.rand(()), (), (1,)).shape == (1,)
    assert reordered_factor(torch.rand(1, 3, 1), (2, 0, 1)).shape == (3, 1, 1)


@pytest.mark.parametrize("dims", [*itertools.permutations(range(3))])
def test_a_permutation_hands_on_the_factor_of_each_element(dims):
    factor = torch.rand(2, 3, 4)
    assert torch.equal(reordered_factor(factor, dims).permute(dims), factor)
    assert torch.equal(reordered_factor(factor, [d - 3 for d in dims]).permute(dims), factor)
