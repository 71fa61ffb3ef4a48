"""The values that settings must have after a removal, from the equations in which they stand.

First the settings that an equation gives alone, then those that follow when these are put into the other equations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from fxprune.analysis.expressions import Expression, Rounded
from fxprune.analysis.settings import Setting
from fxprune.analysis.uses import NumberUse
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector


@dataclass(frozen=True, eq=False)
class Solved:
    """The values of the settings of one part of the uses, and where they do not fit.

    values: the value of each setting; some may be no integers.
    wrong: the uses that do not hold, each with the number that it would have.
    deciding: setting -> the use that gave its value.
    missed: how far the uses are from holding, all together; 0 if they hold.
    """

    values: Mapping[Setting, Fraction]
    wrong: Sequence[tuple[NumberUse, Fraction]]
    deciding: Mapping[Setting, NumberUse]
    missed: Fraction


def solve_part(
    uses: Sequence[NumberUse],
    before: Mapping[Setting, int],
    removal: Removal,
    given: Mapping[Setting, Fraction] = MappingProxyType({}),
) -> Solved:
    """Find the values of the settings in some uses.

    before: the values in the original. A setting whose value nothing decides keeps it. given: values that are decided.
    """
    return _Equations(uses, before, removal, given).solved()


def is_touched(uses: Sequence[NumberUse], removal: Removal) -> bool:
    """True if a removal takes slots from a dimension that some uses are about."""
    return any(removal.kept(vector) is not None for use in uses for vector in use.vectors)


def wrong_parts(parts: Sequence[Sequence[NumberUse]], before: Mapping[Setting, int], removal: Removal) -> list[Solved]:
    """The solutions of those parts of the uses that do not hold after a removal. before: as in `solve_part`."""
    touched = [part for part in parts if is_touched(part, removal)]
    return [solved for part in touched if (solved := solve_part(part, before, removal)).missed]


class _Equations:
    """The equations of one part, in which settings are replaced by their values step by step."""

    def __init__(
        self,
        uses: Sequence[NumberUse],
        before: Mapping[Setting, int],
        removal: Removal,
        given: Mapping[Setting, Fraction],
    ) -> None:
        self.before, self.removal = before, removal
        self.values = dict(given)
        self.deciding: dict[Setting, NumberUse] = {}
        self.open = [(use, use.expression.partly(self._known)) for use in uses]
        self.closed: list[tuple[NumberUse, Fraction]] = []

    def _known(self, variable: Setting | Vector) -> Fraction | None:
        if isinstance(variable, Vector):
            return Fraction(self.removal.count(variable))
        return self.values.get(variable)

    def solved(self) -> Solved:
        while self._alone() or self._searched() or self._together():
            pass
        for setting in {s for _, expression in self.open for s in expression.settings}:
            self.values.setdefault(setting, Fraction(self.before[setting]))
        self._put_in()
        misses = [(use, value, use.missed_by(value, self.removal)) for use, value in self.closed]
        uneven = sum((-v % 1 for v in self.values.values()), Fraction(0))
        wrong = [(use, value) for use, value, miss in misses if miss]
        return Solved(self.values, wrong, self.deciding, sum((miss for *_, miss in misses), uneven))

    def _put_in(self) -> None:
        """Put the known values into the open equations."""
        left = []
        for use, expression in self.open:
            expression = expression.partly(self._known)
            if expression.constant is None and not expression.settings:
                continue  # a denominator is 0
            if expression.constant is None:
                left.append((use, expression))
            else:
                self.closed.append((use, expression.constant))
        self.open = left

    def _decide(self, setting: Setting, value: Fraction, use: NumberUse) -> None:
        self.values[setting], self.deciding[setting] = value, use

    def _alone(self) -> bool:
        """Solve the equations with a single unknown. Returns whether a value was found."""
        self._put_in()
        found = False
        for use, expression in self.open:
            required = use.required(self.removal)
            if required is None or len(expression.settings) != 1:
                continue
            (setting,) = expression.settings
            value = _root(expression, required)
            if setting not in self.values and value is not None:
                self._decide(setting, value, use)
                found = True
        return found

    def _searched(self) -> bool:
        """Try the integers for a setting that stands alone in rounded numbers. Returns whether one was found."""
        for setting in dict.fromkeys(s for _, expression in self.open for s in expression.settings):
            places = [(u, e) for u, e in self.open if e.settings == {setting} and u.required(self.removal) is not None]
            for value in range(self.before[setting], 0, -1) if places else ():
                results = [(u, e.value(lambda s, v=Fraction(value): v)) for u, e in places]  # type: ignore[misc]
                if all(v is not None and not u.missed_by(v, self.removal) for u, v in results):
                    self._decide(setting, Fraction(value), places[0][0])
                    return True
        return False

    def _together(self) -> bool:
        """Solve an equation with several unknowns for one of them; the others keep their values."""
        for use, expression in self.open:
            required = use.required(self.removal)
            if required is None:
                continue
            for setting in sorted(expression.settings, key=str):
                others = {s: Fraction(self.before[s]) for s in expression.settings if s != setting}
                value = _root(expression.partly(lambda s, others=others: others.get(s)), required)  # type: ignore[misc]
                if value is not None and value.denominator == 1 and value > 0:
                    self._decide(setting, value, use)
                    for other, kept in others.items():
                        self._decide(other, kept, use)
                    return True
        return False


def _root(expression: Expression, required: Fraction) -> Fraction | None:
    """The value of the only setting in an expression for which it is `required`; None if it cannot be isolated."""
    constant = expression.terms.get(frozenset(), Fraction(0))
    products = [(product, factor) for product, factor in expression.terms.items() if product]
    if len(products) != 1:
        return None
    ((product, factor),) = products
    ((variable, power),) = product if len(product) == 1 else ((None, 0),)
    target = (required - constant) / factor
    if isinstance(variable, Rounded) or target <= 0 or power not in (1, -1):
        return None
    return target if power == 1 else 1 / target
