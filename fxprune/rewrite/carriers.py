"""The search for the weights that carry the ratio of two scales.

Code that computes a scale from a width, such as `width ** -0.5`, computes another one in the small model. The result of
that operation is right all the same if what it multiplies is multiplied by the ratio of both. So a factor is asked of
its argument, and handed on from every operation to its arguments, until it arrives at parameters:

    scores = q @ k^T * s'     q has to be multiplied by s / s'
    q = rotate(view(y))       so has y, where q is made of it
    y = x w^T + b             so have the rows of w, and b

All readers of a tensor must ask the same of it. A reader that asks nothing asks for the factor 1. An operation may
leave a choice (a product has two factors). Where a choice leads to a contradiction, the next one is tried.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch

from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.analysis.steps import ATEN_ATTENTION, Step, Steps
from fxprune.capture.scopes import Key
from fxprune.ops.aspects import DEPENDENCE, FACTORS
from fxprune.ops.dependence import nothing
from fxprune.ops.factors import (
    Asked,
    UnevenError,
    Value,
    Way,
    change,
    compact,
    is_one,
    met,
    moved_factors,
    number_of,
    unchanged_factor,
    values_in,
)
from fxprune.ops.indexing import index_factors
from fxprune.proof.shapes import Changed

TRIES = 64
"""The most contradictions for each changed operation, after which the search is given up."""


class NoCarrierError(Exception):
    """No weights can carry a factor. The text says why.

    event: the number of the event at the operation that cannot, 0 where it is none.
    changed: the operations whose numbers have to stay.
    """

    def __init__(self, why: str, event: int, changed: Sequence[Changed]) -> None:
        self.event, self.changed = event, tuple(changed)
        super().__init__(why)


class _ContradictionError(Exception):
    """A factor that cannot be carried.

    step: where. blame: the steps whose choice led there, and the changed ones.
    at_input: True if an input or a constant would have to carry it.
    """

    def __init__(self, why: str, step: Step | None, blame: frozenset[int], *, at_input: bool = False) -> None:
        self.step, self.blame, self.at_input = step, blame, at_input
        super().__init__(why)


@dataclass(frozen=True, eq=False)
class _Request:
    """A factor that a step asks of a value, and the steps that led to it."""

    factor: torch.Tensor
    blame: frozenset[int]


def carried(
    steps: Steps,
    changed: Sequence[Changed],
    trainable: Iterable[str],
    dtypes: Mapping[Key, torch.dtype] = MappingProxyType({}),
) -> ScaleFactors:
    """The factors with which the small model is right although operations are called with other numbers.

    trainable: the names of the parameters that may be multiplied. dtypes: operations whose result is of this type
        whatever type the model is of.

    Raises `NoCarrierError` where there are none.
    """
    return _Search(steps, changed, frozenset(trainable), dtypes).run()


class _Search:
    """One search. Steps are known by their numbers in `steps.done`."""

    def __init__(
        self, steps: Steps, changed: Sequence[Changed], trainable: frozenset[str], dtypes: Mapping[Key, torch.dtype]
    ) -> None:
        self.steps, self.done, self.trainable, self.dtypes = steps, steps.done, trainable, dtypes
        self.known: dict[Value, tuple[float, float]] = {}  # tensors of one number: that of before, and that of now
        self.changed = {entry.key: entry for entry in changed}
        self.producer: dict[Value, int] = {}
        self.readers: dict[Value, list[int]] = defaultdict(list)
        for number, step in enumerate(self.done):
            self.producer.update(dict.fromkeys(step.made, number))
            for value in dict.fromkeys(_read(step)):
                self.readers[value].append(number)
        self.choices: dict[int, int] = {}
        self.options: dict[int, int] = {}
        self.asking: dict[int, tuple[Mapping[str, float], Mapping[str, float]]] = {}
        self.causes: dict[int, frozenset[int]] = {}

    def run(self) -> ScaleFactors:
        """The factors. Raises `NoCarrierError`."""
        try:
            self._find_changed_steps()
        except _ContradictionError as error:
            raise self._given_up([error]) from None
        errors = []
        for _ in range(TRIES * max(1, len(self.asking))):
            self.options.clear()
            attempt = _Pass(self)
            try:
                return attempt.run()
            except _ContradictionError as error:
                errors.append(error)
                if not self._choose_again(error.blame):
                    raise self._given_up(errors) from None
        raise self._given_up(errors)

    def _choose_again(self, blame: frozenset[int]) -> bool:
        """Take the next choice of the step that is nearest to the contradiction; False if none is left."""
        for number in sorted(blame):
            if self.choices.get(number, 0) + 1 < self.options.get(number, 0):
                self.choices[number] = self.choices.get(number, 0) + 1
                for other in blame:
                    if other < number:
                        self.choices.pop(other, None)
                return True
        return False

    def _given_up(self, errors: Sequence[_ContradictionError]) -> NoCarrierError:
        """The error for the operations that the last contradiction comes from.

        It tells the last one that weights meet, if there is one: that an input cannot carry a factor says less.
        """
        keys = self._causes(errors[-1])
        met_by_weights = (e for e in reversed(errors) if not e.at_input and self._causes(e) & keys)
        told = next(met_by_weights, errors[-1])
        blamed = [entry for key, entry in self.changed.items() if key in keys]
        event = 0 if told.step is None else told.step.event
        return NoCarrierError(str(told), event, blamed or list(self.changed.values()))

    def _causes(self, error: _ContradictionError) -> set[Key]:
        """The changed operations that a contradiction comes from."""
        causes = error.blame.union(*(self.causes.get(number, ()) for number in error.blame))
        return {self.done[number].key for number in causes} & self.changed.keys()

    # -- from changed numbers to the operations that use them -----------------------------------------------------

    def _find_changed_steps(self) -> None:
        """Find the steps that compute with other numbers: called with them, or with tensors made of them."""
        plain: set[Value] = set()  # tensors that are made of numbers alone
        off: dict[Value, tuple[float, frozenset[int]]] = {}
        for number, step in enumerate(self.done):
            read, entry = _read(step), self.changed.get(step.key)
            is_plain = all(value in plain for value in read) or step.name == "aten::lift_fresh"
            plain.update(step.made if is_plain else ())
            if is_plain:
                self._compute(step, entry)
            if entry is None and not any(value in off for value in read):
                continue
            numbers = {} if entry is None else _named(step, entry)
            times = {n: off[v][0] for n, v in step.raw.items() if isinstance(v, Value) and v in off}
            causes = frozenset({number}).union(*(off[value][1] for value in read if value in off))
            if is_plain:
                ratio = self._ratio(step, numbers, times)
                if ratio is None:
                    raise _ContradictionError(f"{step.name} makes other numbers", step, causes)
                off.update(dict.fromkeys(step.made, (ratio, causes)))
            else:
                self.asking[number], self.causes[number] = (numbers, times), causes

    def _compute(self, step: Step, entry: Changed | None) -> None:
        """Note the number of a tensor that is made of plain numbers, before and now, rounded to its type."""
        if len(step.made) != 1 or step.made[0].shape != ():
            return
        if step.name == "aten::lift_fresh":
            number = step.read[0].number
            pair = (number, number) if entry is None else (entry.before[0], entry.after[0])
        else:
            given = [(name, value) for name, value in step.raw.items() if isinstance(value, Value)]
            if step.func is None or any(value not in self.known for _, value in given):
                return
            asked, numbers = Asked(step.func, step.raw, [_ONE]), {} if entry is None else _named(step, entry)
            pair = (
                number_of(asked, {name: self.known[value][0] for name, value in given}, {}),
                number_of(asked, {name: self.known[value][1] for name, value in given}, numbers),
            )
        dtype = self.dtypes.get(step.key, torch.float64)
        if pair[0] is not None and pair[1] is not None and dtype is not torch.bool:
            before, now = (float(torch.tensor(number, dtype=dtype)) for number in pair)
            self.known[step.made[0]] = before, now

    def _ratio(self, step: Step, numbers: Mapping[str, float], off: Mapping[str, float]) -> float | None:
        """The number of times that the result of a step on plain numbers is too large; None if elements differ."""
        if step.made and step.made[0] in self.known:
            before, now = self.known[step.made[0]]
            return now / before if before and now / before > 0 else None
        if _only_moves(step) and not numbers:
            return next(iter(off.values())) if len(off) == len(step.read) == 1 else None
        return None if step.func is None else change(Asked(step.func, step.raw, [_ONE], numbers, off))

    @cached_property
    def pure(self) -> frozenset[Value]:
        """The values that are parameters, only moved: a factor that is asked of them arrives."""
        found = {v for v in self.readers if v.name in self.trainable and v not in self.producer}
        for step in self.done:
            if step.read and all(value in found for value in step.read) and _only_moves(step):
                found.update(step.made)
        return frozenset(found)


class _Pass:
    """One walk from the last step to the first, with one choice for each step."""

    def __init__(self, search: _Search) -> None:
        self.search = search
        self.requests: dict[Value, dict[int, _Request]] = defaultdict(dict)
        self.queue = [-number for number in search.asking]
        heapq.heapify(self.queue)
        self.arrived: dict[Value, None] = {}
        self.results: dict[Any, tuple[torch.Tensor, ...]] = {}

    def run(self) -> ScaleFactors:
        """The factors. Raises `_ContradictionError`."""
        before = None
        while self.queue:
            number = -heapq.heappop(self.queue)
            if number != before:
                self._hand_on(number)
            before = number
        parameters: dict[str, torch.Tensor] = {}
        for value in self.arrived:
            request = self._agreed(value)
            factor = compact(_wide(request.factor, value))
            if sum(size > 1 for size in factor.shape) > 1:
                raise _ContradictionError(f'"{value.name}" would need a factor for each number', None, request.blame)
            if not is_one(factor):
                parameters[value.name or ""] = torch.where(factor.isnan(), 1.0, factor)
        numbers = {key: entry.after for key, entry in self.search.changed.items()}
        return ScaleFactors(parameters, numbers, self.results)

    def _hand_on(self, number: int) -> None:
        """Hand the factors that are asked of the results of a step on to its arguments."""
        search = self.search
        step, asking = search.done[number], search.asking.get(number)
        wanted = [self._agreed(value) for value in step.made]
        blame = frozenset({number} if asking else ()).union(*(request.blame for request in wanted))
        factors = [_wide(request.factor, value) for request, value in zip(wanted, step.made, strict=True)]
        if not asking and all(map(is_one, factors)):
            return
        if not all(map(is_one, factors)):
            self.results[step.key] = tuple(factors)
        ways = self._ways(number, Asked(step.func, step.raw, factors, *(asking or ())), blame)
        search.options[number] = len(ways)
        way = ways[min(search.choices.get(number, 0), len(ways) - 1)]
        blame |= {number}
        for value, factor in self._asked_of(step, way, blame).items():
            if is_one(factor):
                continue
            self.requests[value][number] = _Request(factor, blame)
            if value in search.producer:
                heapq.heappush(self.queue, -search.producer[value])
            elif value.name in search.trainable and value.floating:
                self.arrived[value] = None
            else:
                what = f'"{value.name}"' if value.name else "an input or a constant"
                why = f"{step.name} reads {what}, which is no weight"
                raise _ContradictionError(why, step, blame, at_input=True)

    def _ways(self, number: int, asked: Asked, blame: frozenset[int]) -> Sequence[Way]:
        """The ways in which a step can carry the factors, those first that need parameters alone."""
        step = self.search.done[number]
        function = FACTORS.of(step.name) if step.name else None
        try:
            ways = [] if function is None else list(function(asked))
        except UnevenError:
            ways = []
        if not ways:
            why = FACTORS.reasons.get(step.name, "") or "it carries no factor"
            name = step.name or step.key[2] or "another view of memory that is written to"
            raise _ContradictionError(f"{name} reads it: {why}", step, blame)
        pure = self.search.pure
        return sorted(ways, key=lambda way: not all(v in pure for name in way for v in values_in(step.raw[name])))

    def _asked_of(self, step: Step, way: Way, blame: frozenset[int]) -> dict[Value, torch.Tensor]:
        """The factor that a step asks of each argument. One that it does not name has to stay as it is."""
        made: dict[Value, torch.Tensor] = {}
        for name, argument in step.raw.items():
            given = way.get(name, _ONE)
            values = list(values_in(argument))
            factors = [given] * len(values) if isinstance(given, torch.Tensor) else given
            for value, factor in zip(values, factors, strict=True):
                if value in made:
                    made[value] = self._met(step, blame, made[value], factor)
                else:
                    made[value] = factor
        return made

    def _agreed(self, value: Value) -> _Request:
        """The factor that all readers ask of a value together."""
        requests = self.requests.get(value)
        if not requests:
            return _Request(_ONE, frozenset())
        blame = frozenset[int]().union(*(request.blame for request in requests.values()))
        factor = None
        for reader in self.search.readers[value]:
            step = self.search.done[reader]
            own = requests[reader].factor if reader in requests else self._as_it_is(step, value)
            factor = own if factor is None else self._met(step, blame, factor, own)
        assert factor is not None
        if value in self.search.steps.results:
            factor = self._met(None, blame, factor, _ONE)
        return _Request(factor, blame)

    @staticmethod
    def _as_it_is(step: Step, value: Value) -> torch.Tensor:
        """The factor 1 for the elements that a step reads."""
        if step.func is not None and FACTORS.of(step.name) in (moved_factors, index_factors):
            try:
                for way in moved_factors(Asked(step.func, step.raw, [torch.ones(v.shape).double() for v in step.made])):
                    for name, argument in step.raw.items():
                        values = list(values_in(argument))
                        if value in values and name in way:
                            given = way[name]
                            return given if isinstance(given, torch.Tensor) else given[values.index(value)]
            except UnevenError:
                pass
        return _ONE

    @staticmethod
    def _met(step: Step | None, blame: frozenset[int], *factors: torch.Tensor) -> torch.Tensor:
        try:
            return met(*factors)
        except UnevenError:
            where = "the model returns it" if step is None else f"{step.name or step.key[2]} reads it unscaled"
            raise _ContradictionError(where, step, blame) from None


_ONE = torch.ones((), dtype=torch.float64)


def _read(step: Step) -> list[Value]:
    """The tensors whose numbers a step reads; `zeros_like` reads a shape only."""
    return [] if DEPENDENCE.of(step.name) is nothing else step.read


def _only_moves(step: Step) -> bool:
    """True if every element of the results is an element of an argument."""
    return FACTORS.of(step.name) in (moved_factors, unchanged_factor)


def _wide(factor: torch.Tensor, value: Value) -> torch.Tensor:
    """A factor with as many dimensions as its value."""
    return factor.reshape((1,) * (len(value.shape) - factor.ndim) + tuple(factor.shape))


def _named(step: Step, entry: Changed) -> dict[str, float]:
    """The numbers of a step that are others in the small model, by argument."""
    names = [name for name, value in step.raw.items() if type(value) is float]
    if step.name == ATEN_ATTENTION:
        names = ["scale"]
    elif len(names) < len(entry.after):
        other = step.raw.get("other")
        names += ["other"] if isinstance(other, int) and not isinstance(other, bool) else ["self"]
    pairs = zip(names, entry.before, entry.after, strict=False)
    return {name: after for name, before, after in pairs if after != before}
