"""Digests: equal for equal tensors however they lie in memory, different for tensors that differ in one number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fxprune.proof.digests import Digester

SHAPES = [(3, 5, 7), (2, 1, 40, 33), (300,), (1,), (), (0, 4), (2, 3, 4, 5, 2), (1, 1000, 3)]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def flags(shape: tuple[int, ...], seed: int) -> list[np.ndarray | None]:
    """Flags for every second dimension, at least one of which is True."""
    random = np.random.default_rng(seed)
    every = [random.random(size) > 0.3 for size in shape]
    for kept in every:
        kept[:1] = True
    return [kept if dim % 2 == 0 else None for dim, kept in enumerate(every)]


def cut(tensor: Tensor, kept: list[np.ndarray | None]) -> Tensor:
    for dim, known in enumerate(kept):
        if known is not None:
            tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(known)))
    return tensor


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128, torch.bool])
def test_slots_that_do_not_count_are_left_out(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    digester, tensor, kept = Digester(), (10 * normal(*shape)).to(dtype), flags(shape, 1)
    small = cut(tensor, kept)
    otherwise = [small.movedim(dim, -1).contiguous().movedim(-1, dim) for dim in range(small.ndim)]
    for lying in (small, *otherwise):
        ours = digester.digest(lying)
        assert ours.shape == tuple(small.shape)
        assert ours.count == small.numel()
        assert ours.error(digester.digest(tensor, kept, norm=False)) < 1e-14
        assert math.isclose(ours.norm, float(small.to(torch.complex128).norm()), rel_tol=1e-12)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if math.prod(shape)])
def test_one_number_that_differs_is_seen(shape: tuple[int, ...]) -> None:
    digester, tensor = Digester(), normal(*shape)
    for place in {0, tensor.numel() // 2, tensor.numel() - 1}:
        other = tensor.clone()
        other.view(-1)[place] *= 1.01
        true = float((other - tensor).norm() / other.norm())
        assert true / 30 < digester.digest(other).error(digester.digest(tensor)) < 30 * true


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_slots_that_are_exchanged_are_seen(dim: int) -> None:
    digester, tensor = Digester(), normal(3, 5, 7)
    other = tensor.index_select(dim, torch.tensor([1, 0, *range(2, tensor.shape[dim])]))
    assert digester.digest(other).error(digester.digest(tensor)) > 1e-2


def test_an_estimate_is_seldom_far_from_the_error() -> None:
    estimates = []
    for seed in range(1000):
        digester = Digester()
        digester._generator.manual_seed(seed)
        made = digester.digest(normal(4, 6, 8))
        estimates.append(max(map(abs, made.products)) / made.norm)
    low, middle, high = np.quantile(estimates, [0.01, 0.5, 0.99])
    assert low > 0.03
    assert 0.5 < middle < 2
    assert high < 5


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e120])
def test_numbers_that_are_not_finite_are_compared_by_their_places(number: float) -> None:
    digester, tensor = Digester(), normal(4, 6)
    kept = [np.array([True, False, True, True]), None]
    tensor[1, 2] = math.nan  # does not count
    tensor[0, 3] = number
    reference, small = digester.digest(tensor, kept, norm=False), cut(tensor, kept)
    assert digester.digest(small).error(reference) < 1e-14
    assert digester.digest(small.roll(1, 1)).error(reference) == math.inf
    assert digester.digest(torch.where(small == number, 1.0, small).nan_to_num(1.0)).error(reference) == math.inf
    small[1, 1] *= 1.01
    assert 1e-5 < digester.digest(small).error(reference) < 1


def test_an_error_against_zeros_and_of_zeros_is_seen() -> None:
    digester, small = Digester(), 1e-12 * normal(5, 5)
    zeros = torch.zeros_like(small)
    assert digester.digest(small).error(digester.digest(zeros)) > 0.1
    assert digester.digest(zeros).error(digester.digest(small)) > 0.1
    assert digester.digest(zeros).error(digester.digest(zeros)) == 0.0
    assert digester.digest(small).error(digester.digest(normal(5, 4))) == math.inf
