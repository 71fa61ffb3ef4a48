"""Example inputs from words: the numbers they have, and the arguments they become."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.cli.inputs import DTYPES, example, filled
from fxprune.cli.usage import UsageError

CPU = torch.device("cpu")


class Three(nn.Module):
    def forward(self, a, b, *rest, c=None):
        return a


def made(*words, model=None, seed=0):
    return filled([example(word) for word in words], model or Three(), seed, CPU)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_its_numbers(dtype):
    [tensor] = made(f"40x50:{dtype}")
    assert (str(tensor.dtype), tensor.shape) == (f"torch.{dtype}", (40, 50))
    if tensor.is_floating_point() or tensor.is_complex():
        wide = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
        assert abs(wide.mean()) < 0.1
        assert abs(wide.std() - 1) < 0.1
    else:
        assert tensor.eq(1 if dtype == "bool" else 0).all()


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint8"])
def test_integers_below_a_bound(dtype):
    [tensor] = made(f"1000:{dtype}<7")
    assert (str(tensor.dtype), sorted({*tensor.tolist()})) == (f"torch.{dtype}", list(range(7)))


def test_numbers_depend_on_the_seed_alone():
    words = ("2x3", "5:int64<1000", "c=4:float64")
    first, again, other = made(*words), made(*words), made(*words, seed=1)
    assert list(first) == ["a", "b", "c"]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert not torch.equal(*made("7", "7"))
    single, double = made("9")[0], made("9:float64")[0]
    assert torch.equal(single, double.float())


def test_inputs_by_position_and_by_name():
    assert [tensor.shape for tensor in made("1", "2", "3")] == [(1,), (2,), (3,)]
    found = made("c=3", "1", "b=2")
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"a": (1,), "b": (2,), "c": (3,)}
    with pytest.raises(UsageError, match="forward has 2 arguments with a name"):
        made("1", "2", "3", "c=4")
    with pytest.raises(UsageError, match='"a" is given by its place too'):
        made("1", "a=2")
