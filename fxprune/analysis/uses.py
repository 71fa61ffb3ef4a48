"""The places where forward uses numbers that it computes from settings and sizes, and what each place requires.

Every place is an equation, such as `2 * inner = count(rows)`, or a comparison that must come out as it did. With
nothing removed all of them hold. After a removal they say what the settings must be.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np

from fxprune.analysis.expressions import Expression
from fxprune.analysis.observed import Place
from fxprune.analysis.settings import Setting
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector

_OPERATORS: Mapping[str, Callable[[Fraction, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, eq=False)
class Count:
    """A place where a number is the size of something.

    expression: how the number was computed.
    vector: the dimension whose slots are counted.
    at, function: the place, and the function that was called there.
    until: if not None, only the slots before this one are counted; if negative, those from there on, as `-number`.
    under: if not None, the number is the size of `vector` divided by the size of `under`, which it repeats.
    """

    expression: Expression
    vector: Vector
    at: Place
    function: str
    until: int | None = None
    under: Vector | None = None

    @property
    def place(self) -> str:
        """The function, the module and the source line."""
        return f"{self.function} in {self.at}"

    @property
    def vectors(self) -> tuple[Vector, ...]:
        """All dimensions that the requirement is about."""
        return (*self.expression.vectors, self.vector, *(() if self.under is None else (self.under,)))

    @property
    def regions(self) -> tuple[Vector, ...]:
        """The dimensions, and the parts of dimensions, whose slots are counted."""
        if self.until is None:
            return self.vectors
        counted = slice(self.until) if self.until >= 0 else slice(self.until, None)
        return (*self.vectors, self.vector.take(counted))

    def required(self, removal: Removal) -> Fraction | None:
        """The value that the expression must have after a removal."""
        if self.until is not None:
            kept = removal.kept(self.vector)
            if kept is None:
                return Fraction(self.until)
            count = int(np.count_nonzero(kept[: self.until] if self.until >= 0 else kept[self.until :]))
            return Fraction(count if self.until >= 0 else -count)
        return Fraction(removal.count(self.vector), 1 if self.under is None else removal.count(self.under))

    def missed_by(self, value: Fraction, removal: Removal) -> Fraction:
        """The distance of a value of the expression from the required one."""
        required = self.required(removal)
        assert required is not None
        return abs(value - required)

    def shown(self, value: Fraction, removal: Removal) -> str:
        """A sentence about the place after a removal, for the value that the expression would have."""
        return f"{self.place} needs {self.required(removal)}"


@dataclass(frozen=True, eq=False)
class SizeComparison:
    """A place where forward compares two numbers.

    expression: the left number minus the right one.
    operator, outcome: the operator, such as "<", and its result.
    at: the place.
    """

    expression: Expression
    operator: str
    outcome: bool
    at: Place

    @property
    def place(self) -> str:
        """The comparison, the module and the source line."""
        return f"the comparison by {self.operator} in {self.at}"

    @property
    def vectors(self) -> tuple[Vector, ...]:
        """All dimensions that are compared."""
        return self.expression.vectors

    regions = vectors

    def required(self, removal: Removal) -> Fraction | None:
        """0 if both numbers must stay equal; None if they may differ."""
        return Fraction(0) if (self.operator, self.outcome) in (("==", True), ("!=", False)) else None

    def missed_by(self, value: Fraction, removal: Removal) -> Fraction:
        """The distance to the next difference of the numbers for which the comparison comes out as it did."""
        if value.denominator != 1:  # a quotient that came out even does so no longer
            return -value % 1
        right = _OPERATORS[self.operator](value, 0) is self.outcome
        return Fraction(0) if right else abs(value) or Fraction(1)

    def shown(self, value: Fraction, removal: Removal) -> str:
        """A sentence about the place after a removal, for the difference that the numbers would have."""
        needs = "equal numbers" if self.required(removal) is not None else f"the result {self.outcome}"
        return (
            f"{self.place} needs {needs}, and they differ by {abs(value)}" if value else f"{self.place} needs {needs}"
        )


NumberUse = Count | SizeComparison


@dataclass(frozen=True, eq=False)
class Uses:
    """All uses of settings and sizes.

    all: the uses, in the order in which they ran.
    before: the value of each setting in the original.
    """

    all: Sequence[NumberUse] = ()
    before: Mapping[Setting, int] = field(default_factory=dict)

    @cached_property
    def parts(self) -> tuple[tuple[NumberUse, ...], ...]:
        """The uses in parts that share no setting, so that each part can be solved alone."""
        parent: dict[Setting, Setting] = {}

        def root(setting: Setting) -> Setting:
            while parent.setdefault(setting, setting) != setting:
                setting = parent[setting]
            return setting

        for use in self.all:
            first, *others = use.expression.settings or (None,)
            for other in others:
                assert first is not None
                parent[root(other)] = root(first)
        found: dict[object, list[NumberUse]] = {}
        for use in self.all:
            key: object = next((root(s) for s in use.expression.settings), use)
            found.setdefault(key, []).append(use)
        return tuple(map(tuple, found.values()))
