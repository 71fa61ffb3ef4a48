"""Probes: configs in which some numbers are changed, and the class built from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from fxprune.analysis.settings import Setting, read_setting
from fxprune.configs.builder import Builder, Built, NotBuiltError
from fxprune.configs.fields import Data, FieldPath, empty_in, numbers_in, written
from fxprune.configs.per_layer import fields_by_layer, pinned

MOST_PRIMES = 3
"""The most shares that are tried for a number: a half, two thirds, four fifths, as it can be divided."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A config in which some numbers are a share of what they were, and what its class is then.

    fields: these numbers. share: as a fraction. built: the model; None where the class raises. error: what it raises.
    """

    fields: tuple[FieldPath, ...]
    share: Fraction
    built: Built | None
    error: str = ""


class Probes:
    """The probes of one model's config. Each is made once.

    base: the config as data, in which fields that were empty have the values that the class takes for them.
    """

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.base: Data = self.builder.data
        self.before = self.builder.build(self.base)
        self._known: dict[tuple[tuple[FieldPath, ...], Fraction], Probe] = {}

    @cached_property
    def numbers(self) -> dict[FieldPath, int | float]:
        """The numbers of the config."""
        return dict(numbers_in(self.base))

    def at(self, fields: Sequence[FieldPath], share: Fraction) -> Probe:
        """The probe in which these numbers are this share of what they were."""
        key = tuple(fields), share
        if key not in self._known:
            values = {field: scaled(self.numbers[field], share) for field in fields}
            try:
                probe = Probe(key[0], share, self.builder.build(written(self.base, values)))
            except NotBuiltError as error:
                probe = Probe(key[0], share, None, str(error))
            self._known[key] = probe
        return self._known[key]

    def of(self, fields: Sequence[FieldPath]) -> Iterator[Probe]:
        """The probes of some numbers together, at the shares that all of them can be divided by."""
        for share in shares_of([self.numbers[field] for field in fields]):
            yield self.at(fields, share)

    def changed_shapes(self, probe: Probe) -> Mapping[str, tuple[int, ...]] | None:
        """Name of a tensor -> its other shape; None where there are other tensors."""
        if probe.built is None or probe.built.shapes.keys() != self.before.shapes.keys():
            return None
        shapes = self.before.shapes
        return {name: shape for name, shape in probe.built.shapes.items() if shape != shapes[name]}

    def pin_empty(self, sizes: Sequence[int], used: Sequence[Setting]) -> None:
        """Write the values that the class takes for empty and missing fields into them, where these are sizes.

        Changes `base`.

        sizes: the values to try. used: the settings that forward computes with.
        """
        for field in [*empty_in(self.base), *self.builder.missing]:
            taken = [size for size in sizes[:2] if self._is_taken(field, size, used)]
            if len(taken) < len(sizes[:2]):  # else the class does not read it
                taken += [size for size in sizes[2:] if not taken and self._is_taken(field, size, used)]
                if taken:
                    self.base = written(self.base, {field: taken[0]})
                    self.__dict__.pop("numbers", None)

    def pin_layers(self, fields: Sequence[FieldPath], used: Sequence[Setting]) -> list[tuple[FieldPath, ...]]:
        """Write numbers of the config into fields of each layer, where the class reads them there. Changes `base`.

        Returns these fields, layer by layer; none where the class does not read them.
        """
        by_layer = fields_by_layer(self.base, fields)
        if not by_layer:
            return []
        before, self.base = self.base, pinned(self.base, by_layer)
        self.__dict__.pop("numbers", None)
        if all(field in self.numbers for field in by_layer[0]) and self._is_same(self.base, used):
            for one in by_layer:
                if any(self.changed_shapes(probe) for probe in self.of(one)):
                    return by_layer
        self.unpin(before)
        return []

    def unpin(self, base: Data) -> None:
        """Takes back what was written into fields. base: the data of before."""
        self.base = base
        self.__dict__.pop("numbers", None)

    def _is_taken(self, field: FieldPath, size: int, used: Sequence[Setting]) -> bool:
        """True if the class is the same with this size in an empty field."""
        return self._is_same(written(self.base, {field: size}), used)

    def _is_same(self, data: Data, used: Sequence[Setting]) -> bool:
        """True if the class that is built from the data is the same."""
        try:
            built = self.builder.build(data)
        except NotBuiltError:
            return False
        same = [setting_in(built, s) == setting_in(self.before, s) for s in used]
        return built.shapes == self.before.shapes and all(same)


def scaled(number: int | float, share: Fraction) -> int | float:
    """A share of a number, of its type; a float where that is no integer."""
    made = Fraction(number) * share
    return int(made) if isinstance(number, int) and made.denominator == 1 else float(made)


def shares_of(numbers: Sequence[int | float]) -> list[Fraction]:
    """The shares to try for some numbers together, so that integers stay integers."""
    integers = [number for number in numbers if isinstance(number, int)]
    if not integers:
        return [Fraction(1, 2)]
    return [Fraction(prime - 1, prime) for prime in _primes(math.gcd(*integers))][:MOST_PRIMES]


def _primes(number: int) -> Iterator[int]:
    """The primes that a number can be divided by, ascending."""
    prime = 2
    while prime * prime <= number:
        if number % prime == 0:
            yield prime
            while number % prime == 0:
                number //= prime
        prime += 1
    if number > 1:
        yield number


def setting_in(built: Built, setting: Setting) -> Any:
    """The value of a setting in a built model; None where there is none."""
    try:
        return read_setting(built.model, setting)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
