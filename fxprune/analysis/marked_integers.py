"""Integers that remember what they were computed from: attributes of modules, and sizes of tensors.

When a small model keeps its class, a setting such as `self.num_heads` must become the new number of heads. But only
its use shows that it counts heads: `view(batch, -1, self.num_heads, self.head_dim)`. So during the walk the integers in
the attributes of modules, and the sizes that forward reads from tensors (`x.shape[1]`), are replaced by `Marked` ones.
These are a subclass of `int` that carries an `Expression` through arithmetic. A marked integer behaves like the plain
one everywhere; its comparisons are noted.

A mark belongs to the notes of one walk, and counts until they are closed. One that forward has left in a cache is a
plain integer in every later run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from fxprune.analysis.expressions import Expression, Rounded

Compared = Callable[[Expression, str, Expression, bool], None]
"""A function that notes a comparison: two integers, the operator between them such as "<", and the result."""


class Notes:
    """The marks of one walk.

    compared: called for every comparison of a marked integer while `listening`.
    listening: set to False while functions of torch run, whose own code compares sizes too.
    closed: True after the walk. From then on arithmetic gives plain numbers.
    """

    def __init__(self, compared: Compared) -> None:
        self.compared = compared
        self.listening = True
        self.closed = False

    def marked(self, value: int, expression: Expression) -> int:
        """An integer with a mark; a plain one if its expression has no variable."""
        if self.closed or expression.constant is not None:
            return value
        made = Marked(value)
        made.notes, made.expression = self, expression
        return made

    def fraction(self, value: float, expression: Expression) -> float:
        """A float with a mark; a plain one if its expression has no variable."""
        if self.closed or expression.constant is not None:
            return value
        made = MarkedFloat(value)
        made.notes, made.expression = self, expression
        return made

    def owns(self, value: Any) -> bool:
        """True if a value is an integer with a mark of these notes."""
        return type(value) is Marked and value.notes is self

    def expression(self, value: float) -> Expression:
        """The expression of a number; the number itself if it has no mark of these notes."""
        if isinstance(value, Marked | MarkedFloat) and value.notes is self:
            return value.expression
        return Expression.of(Fraction(value))


class Marked(int):
    """An integer that was computed from settings and sizes.

    notes: the notes of the walk that it belongs to. expression: how it was computed.
    """

    notes: Notes
    expression: Expression

    def __add__(self, other: Any) -> Any:
        return self._made(int.__add__(self, other), other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Any:
        return self._made(int.__sub__(self, other), other, lambda a, b: a - b)

    def __rsub__(self, other: Any) -> Any:
        return self._made(int.__rsub__(self, other), other, lambda a, b: b - a)

    def __mul__(self, other: Any) -> Any:
        if type(other) is float:
            return self._share(int(self) * other, other, lambda a, b: a * b)
        return self._made(int.__mul__(self, other), other, lambda a, b: a * b)

    def __truediv__(self, other: Any) -> Any:
        return self._share(int.__truediv__(self, other), other, lambda a, b: a / b)

    def __rtruediv__(self, other: Any) -> Any:
        return self._share(int.__rtruediv__(self, other), other, lambda a, b: b / a)

    def __floordiv__(self, other: Any) -> Any:
        return self._made(int.__floordiv__(self, other), other, lambda a, b: _floor(a, b, int(self) % int(other)))

    def __rfloordiv__(self, other: Any) -> Any:
        return self._made(int.__rfloordiv__(self, other), other, lambda a, b: _floor(b, a, int(other) % int(self)))

    def __mod__(self, other: Any) -> Any:
        return self._made(int.__mod__(self, other), other, lambda a, b: a - b * Rounded.of(a, b, math.floor))

    def __rmod__(self, other: Any) -> Any:
        return self._made(int.__rmod__(self, other), other, lambda a, b: b - a * Rounded.of(b, a, math.floor))

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        power = int.__pow__(self, other, modulo)
        if type(power) is not int or modulo is not None or not 0 < other <= 4:
            return power
        product = self.expression
        for _ in range(other - 1):
            product = product * self.expression
        return self.notes.marked(power, product)

    def __neg__(self) -> int:
        return self.notes.marked(-int(self), self.expression * -1)

    def __pos__(self) -> int:
        return self

    __radd__, __rmul__ = __add__, __mul__
    __floor__ = __ceil__ = __trunc__ = __pos__

    def __round__(self, digits: Any = None) -> int:
        return self if digits is None else int.__round__(self, digits)

    def _made(self, value: Any, other: Any, combine: Callable[[Expression, Expression], Expression]) -> Any:
        """The result of an operator with another integer, marked; `NotImplemented` for any other operand."""
        if type(value) is not int or self.notes.closed:
            return value
        return self.notes.marked(value, combine(self.expression, self.notes.expression(other)))

    def _share(self, value: Any, other: Any, combine: Callable[[Expression, Expression], Expression]) -> Any:
        """The result of an operator that gives a float, marked if its expression is known."""
        if type(value) is not float or self.notes.closed or not math.isfinite(value):
            return value
        try:
            return self.notes.fraction(value, combine(self.expression, self.notes.expression(other)))
        except ValueError:
            return value

    # -- comparisons --------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> Any:
        return self._compared(int.__eq__(self, other), "==", other)

    def __ne__(self, other: object) -> Any:
        return self._compared(int.__ne__(self, other), "!=", other)

    def __lt__(self, other: Any) -> Any:
        return self._compared(int.__lt__(self, other), "<", other)

    def __le__(self, other: Any) -> Any:
        return self._compared(int.__le__(self, other), "<=", other)

    def __gt__(self, other: Any) -> Any:
        return self._compared(int.__gt__(self, other), ">", other)

    def __ge__(self, other: Any) -> Any:
        return self._compared(int.__ge__(self, other), ">=", other)

    def __bool__(self) -> bool:
        return bool(self._compared(int.__bool__(self), "!=", 0))

    __hash__ = int.__hash__

    def _compared(self, outcome: Any, operator: str, other: Any) -> Any:
        if self.notes.listening and not self.notes.closed and type(outcome) is bool:
            self.notes.compared(self.expression, operator, self.notes.expression(other), outcome)
        return outcome

    # -- copies are plain integers ------------------------------------------------------------------------

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


class MarkedFloat(float):
    """A float that was computed from settings and sizes, such as `self.dim * 0.5`. It is of use once it is rounded."""

    notes: Notes
    expression: Expression

    def __mul__(self, other: Any) -> Any:
        return self._made(float.__mul__(self, other), other, lambda a, b: a * b)

    def __truediv__(self, other: Any) -> Any:
        return self._made(float.__truediv__(self, other), other, lambda a, b: a / b)

    def __add__(self, other: Any) -> Any:
        return self._made(float.__add__(self, other), other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Any:
        return self._made(float.__sub__(self, other), other, lambda a, b: a - b)

    __rmul__, __radd__ = __mul__, __add__

    def _made(self, value: Any, other: Any, combine: Callable[[Expression, Expression], Expression]) -> Any:
        if type(value) is not float or self.notes.closed or not math.isfinite(value) or not math.isfinite(other):
            return value
        try:
            return self.notes.fraction(value, combine(self.expression, self.notes.expression(other)))
        except ValueError:
            return value

    def __floor__(self) -> int:
        return self._rounded(math.floor(float(self)), math.floor)

    def __ceil__(self) -> int:
        return self._rounded(math.ceil(float(self)), math.ceil)

    def __trunc__(self) -> int:
        return self._rounded(math.trunc(float(self)), math.trunc)

    def __round__(self, digits: Any = None) -> Any:
        return self._rounded(round(float(self)), round) if digits is None else round(float(self), digits)

    def _rounded(self, value: int, rounding: Callable[[Fraction], int]) -> int:
        even = float(self) == value
        return self.notes.marked(value, self.expression if even else Rounded.of(self.expression, 1, rounding))

    def __copy__(self) -> float:
        return float(self)

    def __deepcopy__(self, memo: Any) -> float:
        return float(self)

    def __reduce__(self) -> Any:
        return float, (float(self),)


def _floor(above: Expression, below: Expression, rest: int) -> Expression:
    """The expression of `above // below`. rest: what is left over; if it is 0, the quotient is taken for exact."""
    if rest == 0:
        try:
            return above / below
        except ValueError:
            pass
    return Rounded.of(above, below, math.floor)
