"""The sizes of inputs that an exported program takes, from its guards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram

Ranges = Mapping[Any, tuple[int, int | None]]
"""Symbol of an open size -> its least and its greatest value, None for no greatest. Without those of any size."""

_STEPS = [2**power for power in range(17)]
"""The distances from the size of the example at which the guards are tried."""


def ranges_of(program: ExportedProgram, guards: Callable[..., Any] | None, leaves: Sequence[Any]) -> Ranges:
    """The open sizes that are in a range.

    A program has a range of its own for each symbol. Its guards may refuse a part of it, such as one size, or a product
    of sizes that is too large. So the guards are called, on tensors without data, to find the range around the example
    in which they accept all sizes. A least value of 2 stands for any, unless they refuse a size of 1.

    guards: the function of a program's module that raises for the inputs that it refuses, None if it has none.
    leaves: the example, one value for each of `user_inputs`.
    """
    found = {}
    for symbol, size in _open_sizes(program, leaves).items():
        least, most = _own_range(program, symbol)
        takes_one = True
        if guards is not None and (accepts := _Guards(program, guards, leaves, symbol))(size):
            least = accepts.last([size, *(size - step for step in _STEPS if size - step > least), min(least, size)])
            further = [size + step for step in _STEPS if most is None or size + step < most]
            last = accepts.last([size, *further, *([] if most is None else [most])])
            most = None if most is None and further and last == further[-1] else last
            takes_one = least > 2 or accepts(1)
        if least > 2 or most is not None or not takes_one:
            found[symbol] = least, most
    return found


def user_inputs(program: ExportedProgram) -> Iterator[torch.fx.Node]:
    """The placeholders of a program that stand for what its user passes."""
    given = {s.arg.name for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"}
    return (node for node in program.graph.find_nodes(op="placeholder") if node.name in given)


def shapes_with(
    program: ExportedProgram, leaves: Sequence[Any], symbol: Any, size: int
) -> list[tuple[int, ...] | None]:
    """The shapes of the inputs if one open size is another one, one for each leaf; None for what is no tensor."""
    values = {**_open_sizes(program, leaves), symbol: size}

    def with_size(expression: Any, have: int) -> int:
        symbols: set[Any] = getattr(expression, "free_symbols", set())
        return int(expression.subs(values)) if symbol in symbols and symbols <= values.keys() else have

    return [
        tuple(map(with_size, _expressions(node), leaf.shape)) if isinstance(leaf, torch.Tensor) else None
        for node, leaf in zip(user_inputs(program), leaves, strict=True)
    ]


def _open_sizes(program: ExportedProgram, leaves: Sequence[Any]) -> dict[Any, int]:
    """Symbol of a size -> the size in the example, for the sizes that are a symbol alone."""
    found: dict[Any, int] = {}
    for node, leaf in zip(user_inputs(program), leaves, strict=True):
        for dim, expression in enumerate(_expressions(node)):
            if getattr(expression, "is_symbol", False):
                found.setdefault(expression, int(leaf.shape[dim]))
    return found


def _expressions(node: torch.fx.Node) -> list[Any]:
    """The sizes of an input: numbers, and expressions for the open ones."""
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, torch.Tensor) else ()
    return [size.node.expr if isinstance(size, torch.SymInt) else size for size in sizes]


def _own_range(program: ExportedProgram, symbol: Any) -> tuple[int, int | None]:
    """The range that a program has for a symbol. A least value of 2 may mean any: torch takes no example of size 1."""
    from torch.utils._sympy.numbers import int_oo  # here, because it imports sympy

    bounds = program.range_constraints.get(symbol)
    if bounds is None:
        return 2, None
    return max(2, int(bounds.lower)), None if bounds.upper == int_oo else int(bounds.upper)


@dataclass(frozen=True)
class _Guards:
    """True for the values of one open size that the guards of a program accept, beside the example's other sizes."""

    program: ExportedProgram
    guards: Callable[..., Any]
    leaves: Sequence[Any]
    symbol: Any

    def __call__(self, size: int) -> bool:
        shapes = shapes_with(self.program, self.leaves, self.symbol, size)
        given = [
            leaf if shape is None else torch.empty(shape, dtype=leaf.dtype, device="meta")
            for leaf, shape in zip(self.leaves, shapes, strict=True)
        ]
        try:
            self.guards(*given)
        except (AssertionError, ArithmeticError, ValueError):
            return False
        return True

    def last(self, sizes: Sequence[int]) -> int:
        """The last size before one that is refused, on the way along sizes of which the first is accepted."""
        good = sizes[0]
        for size in sizes[1:]:
            if not self(size):
                return self._between(good, size)
            good = size
        return good

    def _between(self, good: int, bad: int) -> int:
        """The accepted size next to a refused one, between an accepted and a refused one."""
        while abs(bad - good) > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self(middle) else (good, middle)
        return good
