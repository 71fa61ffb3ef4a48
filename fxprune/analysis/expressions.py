"""Expressions: how an integer was computed from the settings of modules and the widths of tensors.

For example, `self.num_heads * self.head_dim` is a product of two settings, and `k.shape[-1] // self.num_heads` is a
width divided by a setting. An expression is a sum of products of powers, with a factor before each product:

    2 * inner + groups * state          {inner: 1} -> 2, {groups: 1, state: 1} -> 1
    width / heads                       {width: 1, heads: -1} -> 1

A quotient that came out even is taken for an exact one, so that `heads * (dim // heads)` is `dim`. Any other rounded
number is a `Rounded`, which stands in products as settings and widths do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from fxprune.analysis.settings import Setting
from fxprune.channels.vector import Vector

Product = frozenset[tuple["Variable", int]]
"""A product of powers: pairs of a variable and its exponent. An empty one is the number 1."""


@dataclass(frozen=True)
class Rounded:
    """A quotient that was rounded to an integer by `rounding`."""

    above: Expression
    below: Expression
    rounding: Callable[[Fraction], int]

    @classmethod
    def of(cls, above: Expression, below: Expression | int, rounding: Callable[[Fraction], int]) -> Expression:
        """The expression of a rounded quotient."""
        return Expression.of(cls(above, _expression(below), rounding))


Variable = Setting | Vector | Rounded
Known = Callable[[Setting | Vector], "Fraction | None"]
"""A function that returns the value of a setting, or the size of a dimension; None if it is unknown."""


class Expression:
    """A sum of products of settings, widths and rounded numbers.

    terms: product -> the factor before it, never 0.

    >>> heads, width = Expression.of(("attn", "heads", None)), Expression.of(("attn", "width", None))
    >>> product = heads * width + 1
    >>> product.value({("attn", "heads", None): 4, ("attn", "width", None): 6}.get)
    Fraction(25, 1)
    >>> (heads * (width / heads)) == width
    True
    """

    def __init__(self, terms: Mapping[Product, Fraction]) -> None:
        self.terms = terms

    @classmethod
    def of(cls, value: Variable | Fraction | int) -> Expression:
        """The expression of a number, or of a variable."""
        if isinstance(value, int | Fraction):
            return cls({frozenset(): Fraction(value)} if value else {})
        return cls({frozenset(((value, 1),)): Fraction(1)})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expression) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    @property
    def constant(self) -> Fraction | None:
        """The number, if there is no variable; else None."""
        if not self.terms:
            return Fraction(0)
        return self.terms.get(frozenset()) if len(self.terms) == 1 else None

    def __add__(self, other: Expression | int | Fraction) -> Expression:
        total = dict(self.terms)
        for product, factor in _expression(other).terms.items():
            total[product] = total.get(product, Fraction(0)) + factor
        return Expression({product: factor for product, factor in total.items() if factor})

    def __sub__(self, other: Expression | int | Fraction) -> Expression:
        return self + _expression(other) * -1

    def __mul__(self, other: Expression | int | Fraction) -> Expression:
        total: dict[Product, Fraction] = {}
        for left, factor in self.terms.items():
            for right, second in _expression(other).terms.items():
                product = _multiplied(left, right)
                total[product] = total.get(product, Fraction(0)) + factor * second
        return Expression({product: factor for product, factor in total.items() if factor})

    def __truediv__(self, other: Expression | int | Fraction) -> Expression:
        """The exact quotient. Raises `ZeroDivisionError`, or `ValueError` if `other` is a sum."""
        other = _expression(other)
        if not other.terms:
            raise ZeroDivisionError
        if len(other.terms) > 1:
            raise ValueError("a sum in the denominator")
        ((product, factor),) = other.terms.items()
        return self * Expression({frozenset((variable, -power) for variable, power in product): 1 / factor})

    @cached_property
    def settings(self) -> frozenset[Setting]:
        """All settings, also those inside rounded numbers."""
        return frozenset(v for v in self._variables() if not isinstance(v, Vector))

    @cached_property
    def vectors(self) -> tuple[Vector, ...]:
        """All dimensions whose sizes are read, also those inside rounded numbers."""
        return tuple(dict.fromkeys(v for v in self._variables() if isinstance(v, Vector)))

    def _variables(self) -> Iterator[Setting | Vector]:
        for product in self.terms:
            for variable, _ in product:
                if isinstance(variable, Rounded):
                    yield from variable.above._variables()
                    yield from variable.below._variables()
                else:
                    yield variable

    def value(self, known: Known) -> Fraction | None:
        """The number, None if a variable is unknown or a denominator is 0."""
        return self.partly(known).constant

    def partly(self, known: Known) -> Expression:
        """The same expression with numbers in place of the variables that are known."""
        total = Expression({})
        for product, factor in self.terms.items():
            left: dict[Variable, int] = {}
            for variable, power in product:
                value = _rounded(variable, known) if isinstance(variable, Rounded) else known(variable)
                if value is None or isinstance(value, Rounded) or (value == 0 and power < 0):
                    left[variable if value is None or not isinstance(value, Rounded) else value] = power
                else:
                    factor *= Fraction(value) ** power
            total += Expression({frozenset(left.items()): factor} if factor else {})
        return total


def _expression(value: Expression | int | Fraction) -> Expression:
    return value if isinstance(value, Expression) else Expression.of(value)


def _multiplied(left: Product, right: Product) -> Product:
    powers = dict(left)
    for variable, power in right:
        powers[variable] = powers.get(variable, 0) + power
    return frozenset((variable, power) for variable, power in powers.items() if power)


def _rounded(variable: Rounded, known: Known) -> Fraction | Rounded:
    """The value of a rounded quotient; the quotient of what is left of it, if that is unknown."""
    above, below = variable.above.partly(known), variable.below.partly(known)
    if above.constant is None or not below.constant:
        return Rounded(above, below, variable.rounding)
    return Fraction(variable.rounding(above.constant / below.constant))
