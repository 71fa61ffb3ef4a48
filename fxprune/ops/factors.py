"""The tools for functions registered with `carries`: how arguments can carry a factor of a result.

Where code computes a scale from a width, such as `width ** -0.5`, a smaller width gives another scale. The small model
is right all the same if a weight before that operation is multiplied by the ratio of the two scales. A function that is
registered with `carries` says which arguments of its operation have to be multiplied so that the result is multiplied:

    mul      y = a * b       the factor of y goes to a, or to b
    add      y = a + b       it goes to both
    linear   y = x w^T + b   it goes to x and b, or to w and b
    relu     y = max(x, 0)   it goes to x, since factors are positive
    softmax                  nothing can carry a factor

A *factor* is a float64 tensor that broadcasts to the shape of its value. It is 1 where an element has to stay as it is,
and NaN where nothing reads the element, so that any factor is right.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fxprune.ops.factor_moves import VIEWS, reordered_factor, reshaped_factor

ROUNDING = 1e-12
"""The largest relative difference between two factors that count as equal."""

Way = Mapping[str, Any]
"""One way to carry a factor: name of an argument -> its factor, a list of factors for a list of tensors."""


class UnevenError(Exception):
    """One number would have to be multiplied by several factors."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of a run: its shape, its type, and its name if it is a parameter or a buffer of the model.

    number: its only number, if forward made it of one, as `torch.tensor(0.5)`.
    positions: its numbers, if forward made it of a list, as `x[:, [0, 2]]`.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    name: str | None = None
    number: float | None = None
    positions: tuple[int, ...] | None = None

    @property
    def floating(self) -> bool:
        """True if its numbers can be multiplied by a fraction."""
        return self.dtype.is_floating_point or self.dtype.is_complex


@dataclass(frozen=True, eq=False)
class Asked:
    """An operation whose results are to be multiplied by factors.

    func: the operator, None for a function that runs several. raw: its arguments by the names of the schema, with a
        `Value` for each tensor.
    factors: the factors of the results.
    numbers: argument that is a number -> the number that the small model calls the operation with, where it is another.
    off: argument that is a tensor, made from numbers alone -> how many times too large it is in the small model.
    """

    func: Any
    raw: Mapping[str, Any]
    factors: Sequence[torch.Tensor]
    numbers: Mapping[str, float] = field(default_factory=dict)
    off: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.raw[name]

    @property
    def factor(self) -> torch.Tensor:
        """The factor of the first result."""
        return self.factors[0]

    def as_before(self, name: str) -> float:
        """The factor that makes a number what it was; 1 if it did not change."""
        return float(self.raw[name] / self.numbers[name]) if name in self.numbers else 1.0


# -- factors ----------------------------------------------------------------------------------------------


def is_one(factor: torch.Tensor) -> bool:
    """True if a factor changes nothing."""
    return bool(((factor - 1).abs() <= ROUNDING).logical_or(factor.isnan()).all())


def reduced(factor: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """One factor for all elements along some dimensions, which get the size 1. Raises `UnevenError` if they differ."""
    dims = tuple(d % factor.ndim for d in dims if factor.shape[d] != 1)
    if not dims:
        return factor
    low = factor.nan_to_num(nan=math.inf).amin(dims, keepdim=True)
    high = factor.nan_to_num(nan=-math.inf).amax(dims, keepdim=True)
    if bool((high - low > ROUNDING * high.abs()).any()):
        raise UnevenError
    return torch.where(high < low, math.nan, high)


def fitted(factor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The factor of an operand of this shape, which is broadcast to the result that has `factor`."""
    extra = factor.ndim - len(shape)
    if extra > 0:
        factor = reduced(factor, range(extra)).reshape(factor.shape[extra:])
    extra = max(-extra, 0)
    return reduced(factor, [d for d in range(factor.ndim) if shape[d + extra] == 1])


def met(*factors: torch.Tensor) -> torch.Tensor:
    """The factor on which several readers of one value agree. Raises `UnevenError` if they do not."""
    made = factors[0]
    for other in factors[1:]:
        if bool(((made - other).abs() > ROUNDING * other.abs()).any()):
            raise UnevenError
        made = torch.where(made.isnan(), other, made)
    return made


def compact(factor: torch.Tensor) -> torch.Tensor:
    """The same factor with size 1 in all dimensions along which it does not change."""
    for dim in range(factor.ndim):
        with contextlib.suppress(UnevenError):
            factor = reduced(factor, [dim])
    return factor


def column(factor: torch.Tensor, dim: int) -> torch.Tensor:
    """The factor along one dimension of a result, [size] or [1]. Raises `UnevenError` if others have several."""
    dim %= factor.ndim
    return reduced(factor, [d for d in range(factor.ndim) if d != dim]).reshape(-1)


# -- functions that several families share ----------------------------------------------------------------------


def moved_factors(asked: Asked) -> list[Way]:
    """Every element of the arguments carries the factor of the results that it becomes."""
    names = [name for name, value in asked.raw.items() if any(v.floating for v in values_in(value))]
    if not names:
        return []
    if len(names) == 1 and isinstance(asked[names[0]], Value) and _same_everywhere(asked, asked[names[0]]):
        return [{names[0]: asked.factor.reshape(-1)[:1].reshape((1,) * len(asked[names[0]].shape))}]
    if names == ["self"] and isinstance(asked["self"], Value) and (factor := _moved_by_dimension(asked)) is not None:
        return [{"self": factor}]
    total, sources = 1, {}
    for name in names:
        given = asked[name]
        made = []
        for value in values_in(given):
            size = math.prod(value.shape)
            made.append(torch.arange(total, total + size, dtype=torch.float64).reshape(value.shape))
            total += size
        sources[name] = made[0] if isinstance(given, Value) else made
    origins = _run(asked, sources)
    if origins is None:
        return []
    least, most = torch.full((total,), math.inf), torch.full((total,), -math.inf)
    least, most = least.double(), most.double()
    for origin, factor in zip(origins, asked.factors, strict=True):
        index, wanted = origin.reshape(-1).long(), factor.expand(origin.shape).reshape(-1)
        least.scatter_reduce_(0, index, wanted.nan_to_num(nan=math.inf), "amin")
        most.scatter_reduce_(0, index, wanted.nan_to_num(nan=-math.inf), "amax")
    least[0] = most[0] = 1  # zeros that the operation adds: any factor leaves them as they are
    if bool((most - least > ROUNDING * most.abs()).any()):
        raise UnevenError
    carried = torch.where(most < least, math.nan, most)

    def taken(source: torch.Tensor) -> torch.Tensor:
        return carried[source.long()]

    return [{name: taken(s) if isinstance(s, torch.Tensor) else [*map(taken, s)] for name, s in sources.items()}]


def _moved_by_dimension(asked: Asked) -> torch.Tensor | None:
    """The factor of the only tensor of a view, a transposition or `unbind`; None for any other operation."""
    name = "" if asked.func is None else asked.func._schema.name.removeprefix("aten::")
    shape = asked["self"].shape
    if name == "permute":
        return reordered_factor(asked.factor, asked["dims"])
    if name == "transpose":
        return asked.factor.transpose(asked["dim0"], asked["dim1"])
    if name == "unbind":
        every = [max(sizes) for sizes in zip(*(factor.shape for factor in asked.factors), strict=True)]
        return torch.stack([factor.expand(every) for factor in asked.factors], asked.raw.get("dim", 0))
    if name not in VIEWS or 0 in shape or len(asked.factors) != 1:
        return None
    made = _run(asked, {"self": torch.empty(shape, device="meta")})
    return None if made is None else reshaped_factor(asked.factor, made[0].shape, shape)


_READ_WHOLE = {f"aten::{name}" for name in ("expand", "repeat", "tile", "repeat_interleave", "broadcast_to")}


def _same_everywhere(asked: Asked, value: Value) -> bool:
    """True if one factor is asked for everywhere, and every element of the argument is in the result."""
    if len(asked.factors) != 1 or asked.factor.numel() != 1 or asked.func is None:
        return False
    return asked.func._schema.name in _READ_WHOLE or value.shape == () or _is_bijective(asked, value)


def _is_bijective(asked: Asked, value: Value) -> bool:
    """True if a movement of one tensor only puts its elements into another order or shape."""
    name = asked.func._schema.name.removeprefix("aten::").removesuffix("_copy")
    return name in _BIJECTIVE


_BIJECTIVE = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "numpy_T", "movedim"),
    *("swapaxes", "unsqueeze", "squeeze", "flatten", "unflatten", "flip", "roll", "unbind", "split", "chunk"),
    *("alias", "detach", "contiguous"),
}


def unchanged_factor(asked: Asked) -> list[Way]:
    """The only tensor carries the factor of the result, which has its shape."""
    named = [(name, value) for name, value in asked.raw.items() if isinstance(value, Value) and value.floating]
    return [{name: fitted(asked.factor, value.shape)} for name, value in named[:1]]


def possible(*ways: Callable[[], Way]) -> list[Way]:
    """The ways among these, given as functions, that ask for one factor of every number."""
    made = []
    for way in ways:
        with contextlib.suppress(UnevenError):
            made.append(way())
    return made


def values_in(argument: Any) -> Iterator[Value]:
    """Every `Value` in an argument."""
    for value in argument if isinstance(argument, (list, tuple)) else (argument,):
        if isinstance(value, Value):
            yield value


def _run(asked: Asked, tensors: Mapping[str, Any]) -> list[torch.Tensor] | None:
    """The results of the operation with other tensors; None if other arguments are tensors, too, or it fails."""
    raw = {name: _with_positions(value) for name, value in {**asked.raw, **tensors}.items()}
    if asked.func is None or any(True for value in raw.values() for _ in values_in(value)):
        return None
    if asked.func._schema.name in ("aten::_reshape_alias", "aten::_unsafe_view", "aten::view"):
        return [raw["self"].reshape(raw["size"])]
    for name in ("layout", "device", "pin_memory", "memory_format"):
        raw.pop(name, None)
    if "dtype" in raw:
        raw["dtype"] = torch.float64
    positional = [raw.pop(a.name) for a in asked.func._schema.arguments if not a.kwarg_only and a.name in raw]
    if torch.Tag.nondeterministic_seeded in asked.func.tags:  # the same numbers each time; the caller keeps the state
        torch.default_generator.manual_seed(0)
    try:
        made = asked.func(*positional, **raw)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    return [made] if isinstance(made, torch.Tensor) else [t for t in made if isinstance(t, torch.Tensor)]


def _with_positions(argument: Any) -> Any:
    """An argument with lists of positions as tensors, where they are known."""
    if isinstance(argument, (list, tuple)):
        return [_with_positions(part) for part in argument]
    if isinstance(argument, Value) and argument.positions is not None:
        return torch.tensor(argument.positions).reshape(argument.shape)
    return argument


# -- operations on single numbers ---------------------------------------------------------------------------------

_NUMBERS = ((1.37, 0.4, -0.73, 2.9), (-0.73, 1.9, 2.1, -0.6), (2.9, -1.1, 0.37, 1.7), (-0.4, -2.3, -1.9, 0.8))
"""The numbers that an operation is tried on, one tuple per trial."""

_FACTORS = (0.3, 7.0, 1e-25, 1e25)
"""The factors that an operation is tried with: also such ones as show a bound or a small addend."""


def carriers(asked: Asked) -> list[tuple[str, ...]]:
    """The smallest sets of tensors that have to be multiplied so that the result of an elementwise operation is.

    The operation itself is run on single numbers.
    """
    named = [n for n, v in asked.raw.items() if isinstance(v, Value) and v.floating and n not in asked.off]
    found: list[tuple[str, ...]] = []
    for count in range(1, len(named) + 1):
        for chosen in itertools.combinations(named, count):
            if not any(set(smaller) <= set(chosen) for smaller in found) and _multiplies(asked, chosen):
                found.append(chosen)
    return found


def _multiplies(asked: Asked, chosen: Sequence[str]) -> bool:
    """True if the result is multiplied by every positive factor by which the chosen tensors are multiplied."""
    for numbers in _NUMBERS:
        before = _on_numbers(asked, numbers)
        for factor in _FACTORS:
            after = _on_numbers(asked, numbers, dict.fromkeys(chosen, factor))
            if before is None or after is None or not _same(after, before * factor):
                return False
    return True


def change(asked: Asked) -> float | None:
    """The number of times that the result of an elementwise operation is too large; None if elements differ in it.

    It is so because of the `numbers` and the tensors that are `off`.
    """
    if not asked.numbers and not asked.off:
        return 1.0
    ratios = []
    for numbers in _NUMBERS:
        before, after = _on_numbers(asked, numbers), _on_numbers(asked, numbers, asked.off, asked.numbers)
        if before is None or after is None:
            return None
        if (before or after) and not (math.isnan(before) and math.isnan(after)):  # the root of a negative number is NaN
            ratios.append(after / before if before else math.nan)
    first = ratios[0] if ratios else math.nan
    return first if first > 0 and math.isfinite(first) and all(_same(r, first) for r in ratios) else None


def number_of(asked: Asked, values: Mapping[str, float], numbers: Mapping[str, float]) -> float | None:
    """The result of an operation on tensors with one number, None where it has none.

    values: argument that is a tensor -> its number. numbers: arguments that are other numbers.
    """
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    made = _run(asked, {**tensors, **numbers, **({"size": []} if "size" in asked.raw else {})})
    return float(made[0].reshape(-1)[0]) if made and made[0].numel() and not made[0].is_complex() else None


def _same(a: float, b: float) -> bool:
    return a == b or abs(a - b) <= ROUNDING * abs(b)


def _on_numbers(
    asked: Asked,
    numbers: Sequence[float],
    times: Mapping[str, float] | None = None,
    others: Mapping[str, float] | None = None,
) -> float | None:
    """The result for single numbers in place of tensors; None where there is none.

    times: argument -> by what its number is multiplied. others: arguments that are other numbers.
    """
    following, tensors = itertools.cycle(numbers), {}
    for name, value in asked.raw.items():
        if isinstance(value, Value):
            number = next(following)
            if value.floating:
                number *= (times or {}).get(name, 1.0)
                tensors[name] = torch.tensor(number, dtype=torch.float64)
            elif name in asked.off:  # a width as a tensor of integers, which code computes fractions from
                tensors[name] = torch.tensor(int(2 * number) * (times or {}).get(name, 1.0), dtype=torch.float64)
            elif value.dtype == torch.bool:
                tensors[name] = torch.tensor(number > 0)
            else:
                tensors[name] = torch.tensor(int(2 * number))
        elif any(True for _ in values_in(value)):
            return None
    made = _run(asked, {**tensors, **(others or {}), **({"size": []} if "size" in asked.raw else {})})
    return float(made[0].reshape(-1)[0]) if made and made[0].numel() and not made[0].is_complex() else None
