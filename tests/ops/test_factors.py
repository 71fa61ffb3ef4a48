"""Factors of results: what an operation says its arguments can carry is tried on the rows of the op table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from fxprune.ops import Call, registered
from fxprune.ops.aspects import FACTORS
from fxprune.ops.factors import (
    Asked,
    UnevenError,
    Value,
    carriers,
    change,
    column,
    compact,
    fitted,
    is_one,
    met,
    moved_factors,
    reduced,
)
from tests.ops.test_aspects import calls

aten = torch.ops.aten


def given(call: Call, generator: torch.Generator) -> dict[str, Any]:
    """Arguments of a call with random tensors, in float64."""

    def real(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(real, value))
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype == torch.bool:
            return torch.randint(2, value.shape, generator=generator).bool()
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)
        return torch.randn(value.shape, generator=generator, dtype=torch.float64)

    raw = {name: real(value) for name, value in call.raw.items() if name != "out"}
    return raw | ({"dtype": None} if "dtype" in raw else {})


def run(func: Any, raw: Mapping[str, Any]) -> list[torch.Tensor] | None:
    """The results of an operation on copies of its arguments, None where it does not run."""
    raw = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in raw.items()}
    positional = [raw.pop(a.name) for a in func._schema.arguments if not a.kwarg_only and a.name in raw]
    torch.manual_seed(0)
    try:
        made = func(*positional, **raw)
    except (RuntimeError, TypeError, IndexError, NotImplementedError, ValueError):
        return None
    return [made] if isinstance(made, torch.Tensor) else [t for t in made if isinstance(t, torch.Tensor)]


def values(argument: Any) -> Any:
    """An argument with a `Value` for each tensor."""
    if isinstance(argument, torch.Tensor):
        return Value(tuple(argument.shape), argument.dtype)
    if isinstance(argument, (list, tuple)) and any(isinstance(a, torch.Tensor) for a in argument):
        return [values(a) for a in argument]
    return argument


def times(argument: Any, factor: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        factors = factor if isinstance(factor, list) else [factor] * len(argument)
        return [times(a, f) for a, f in zip(argument, factors, strict=True)]
    return argument * torch.where(factor.isnan(), 1.7, factor)  # any factor is right where nothing reads


def tried(call: Call, uniform: bool) -> Iterator[bool]:
    """Try every way that a call offers: True where the results are multiplied as they should."""
    generator = torch.Generator().manual_seed(1)
    raw = given(call, generator)
    made = run(call.func, raw)
    if not made or not made[0].is_floating_point():
        return
    factor = torch.rand(made[0].shape, generator=generator, dtype=torch.float64) + 0.5
    if uniform:
        factor = torch.full((1,) * made[0].ndim, 0.7, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    factors = [factor, *(one.reshape((1,) * t.ndim) for t in made[1:])]
    if FACTORS.of(call.op) is moved_factors:
        if call.func._schema.is_mutable:  # the row knows the shape of afterwards only
            return
        factors = [
            factor.expand(t.shape) if uniform else torch.rand(t.shape, generator=generator).double() + 0.5 for t in made
        ]
    try:
        ways = FACTORS.of(call.op)(Asked(call.func, {n: values(v) for n, v in raw.items()}, factors))
    except UnevenError:
        return
    for way in ways:
        after = run(call.func, raw | {name: times(raw[name], part) for name, part in way.items()})
        assert after is not None
        pairs = zip(after, made, factors, strict=True)
        yield all(torch.allclose(a, b * f if b.is_floating_point() else b, equal_nan=True) for a, b, f in pairs)


def test_arguments_carry_the_factor_of_the_result() -> None:
    offered = set()
    for name in sorted(registered().keys() & FACTORS.functions.keys() & calls().keys()):
        for call in calls()[name]:
            for uniform in (True, False):
                right = list(tried(call, uniform))
                assert all(right), (name, uniform, call.raw)
                if right:
                    offered.add(name)
    assert len(offered) > 60, "most operations are tried"
    assert {"aten::add", "aten::addmm", "aten::bmm", "aten::cat", "aten::convolution", "aten::div"} <= offered
    assert {"aten::mul", "aten::native_layer_norm", "aten::relu", "aten::slice", "aten::view"} <= offered


# -- elementwise operations are tried on numbers ----------------------------------------------------------------


def asked(func: Any, *arguments: Any, **options: Any) -> Asked:
    names = [a.name for a in func._schema.arguments]
    raw = dict(zip(names, arguments, strict=False))
    return Asked(func, raw, [torch.ones(1, dtype=torch.float64)], **options)


X, Y = (Value((3,), torch.float64) for _ in range(2))
FLAG = Value((3,), torch.bool)


@pytest.mark.parametrize(
    ("func", "arguments", "want"),
    [
        (aten.mul.Tensor, (X, Y), [("self",), ("other",)]),
        (aten.add.Tensor, (X, Y), [("self", "other")]),
        (aten.add.Tensor, (X, 1e-6), []),  # an epsilon
        (aten.sub.Tensor, (X, Y), [("self", "other")]),
        (aten.div.Tensor, (X, Y), [("self",)]),
        (aten.relu.default, (X,), [("self",)]),
        (aten.leaky_relu.default, (X, 0.1), [("self",)]),
        (aten.abs.default, (X,), [("self",)]),
        (aten.sqrt.default, (X,), []),
        (aten.clamp.default, (X, 0, None), [("self",)]),
        (aten.clamp.default, (X, -1e4, 1e4), []),
        (aten.hardtanh.default, (X, -65504.0, 65504.0), []),
        (aten.gelu.default, (X,), []),
        (aten.square.default, (X,), []),
        (aten.masked_fill.Scalar, (X, FLAG, -math.inf), [("self",)]),
        (aten.masked_fill.Scalar, (X, FLAG, 0.0), [("self",)]),
        (aten.masked_fill.Scalar, (X, FLAG, -1e9), []),
        (aten.where.self, (FLAG, X, Y), [("self", "other")]),
        (aten.maximum.default, (X, Y), [("self", "other")]),
        (aten.addcmul.default, (X, Y, Y), [("self", "tensor1"), ("self", "tensor2")]),
    ],
)
def test_the_operands_that_carry_a_factor(func: Any, arguments: Any, want: Any) -> None:
    assert carriers(asked(func, *arguments)) == want


@pytest.mark.parametrize(
    ("made", "want"),
    [
        (asked(aten.mul.Tensor, X, 0.5, numbers={"other": 0.25}), 0.5),
        (asked(aten.div.Tensor, X, 4.0, numbers={"other": 2.0}), 2.0),
        (asked(aten.div.Tensor, X, 4, numbers={"other": 2.0}), 2.0),
        (asked(aten.add.Tensor, X, 4.0, numbers={"other": 2.0}), None),
        (asked(aten.pow.Tensor_Scalar, X, 0.5, numbers={"exponent": 0.25}), None),
        (asked(aten.sqrt.default, X, off={"self": 0.25}), 0.5),
        (asked(aten.rsqrt.default, X, off={"self": 0.25}), 2.0),
        (asked(aten.mul.Tensor, X, Y, off={"other": 3.0}), 3.0),
        (asked(aten.exp.default, X, off={"self": 0.25}), None),
        (asked(aten.relu.default, X), 1.0),
    ],
)
def test_how_many_times_too_large_a_result_is(made: Asked, want: float | None) -> None:
    assert change(made) == (want if want is None else pytest.approx(want, rel=1e-12))


# -- factors themselves ------------------------------------------------------------------------------------------

NAN = math.nan


def tensor(*numbers: Any) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_readers_agree_where_nobody_asks_for_two_factors() -> None:
    assert met(tensor(2.0, NAN, NAN), tensor(NAN, 3.0, NAN)).tolist()[:2] == [2, 3]
    assert is_one(tensor(1.0, NAN))
    assert not is_one(tensor(1.0, 1.1))
    with pytest.raises(UnevenError):
        met(tensor(2.0, NAN), tensor(1.0, NAN))


def test_one_factor_for_several_elements_must_be_the_same() -> None:
    grid = tensor([2.0, NAN], [2.0, 3.0])
    assert reduced(grid, [0]).tolist() == [[2, 3]]
    assert column(grid, -1).tolist() == [2, 3]
    assert fitted(grid, (2,)).tolist() == [2, 3]
    assert compact(tensor([2.0, 2.0], [3.0, NAN])).tolist() == [[2], [3]]
    with pytest.raises(UnevenError):
        reduced(grid, [1])


def test_elements_carry_the_factor_of_what_they_become() -> None:
    def way(func: Any, *arguments: Any, factors: list[torch.Tensor]) -> Any:
        names = [a.name for a in func._schema.arguments]
        (made,) = moved_factors(Asked(func, dict(zip(names, arguments, strict=False)), factors))
        return made

    value = Value((4,), torch.float64)
    assert way(aten.slice.Tensor, value, 0, 1, 3, 1, factors=[tensor(2.0, 3.0)])["self"].tolist()[1:3] == [2, 3]
    assert way(aten.constant_pad_nd.default, value, [1, 0], 0, factors=[tensor(9.0, 1, 2, 3, 4)])["self"].tolist() == [
        1,
        2,
        3,
        4,
    ]
    assert way(aten.cat.default, [value, value], 0, factors=[tensor(*range(1, 9))])["tensors"][1].tolist() == [
        5,
        6,
        7,
        8,
    ]
    assert way(aten.split.Tensor, value, 2, factors=[tensor(1.0, 2), tensor(3.0, 4)])["self"].tolist() == [1, 2, 3, 4]
    with pytest.raises(UnevenError):
        way(aten.repeat.default, value, [2], factors=[tensor(*range(1, 9))])
