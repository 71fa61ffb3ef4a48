"""Layers that are gone whole: the config with fewer of them, and the small model that its class makes of it.

Where a residual branch goes, a module that passes its input on stands in its place. Where this is a whole entry of a
list, such as `model.layers`, the class can be built from a config with fewer layers. Which numbers count the layers,
and which lists have an entry for each, is tried: the class of the changed config has to be the model without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import nn

from fxprune.analysis.settings import OF_EVERY_MODULE
from fxprune.configs.builder import Builder, Built, NotBuiltError
from fxprune.configs.constructed import construct
from fxprune.configs.fields import Data, FieldPath, name_of, numbers_in, sequences_in, written
from fxprune.configs.per_layer import renumbered
from fxprune.depth.numbering import LayersGone, in_original_numbering, name_after, name_before, without_layers
from fxprune.depth.stubs import GivesZeros, PassesOn

MOST_NUMBERS = 3
"""The most numbers of a config that count the layers of one list."""


class LayersStayError(Exception):
    """No config says a model without some layers. The text says why."""


@dataclass(frozen=True, eq=False)
class FewerLayers:
    """A config with fewer layers.

    gone: the layers. data: the config. built: the class, built from it, which counts the layers from 0.
    """

    gone: LayersGone
    data: Data
    built: Built


def passing_layers(model: nn.Module, built: Built) -> LayersGone:
    """The entries of lists that pass their input on, in a model whose class makes other modules there."""
    made = dict(built.model.named_modules())
    found: dict[str, list[int]] = {}
    for path, module in model.named_modules():
        outer, _, name = path.rpartition(".")
        is_entry = name.isdigit() and type(made.get(outer)) is nn.ModuleList
        if is_entry and isinstance(module, nn.Identity | PassesOn) and type(made.get(path)) is not type(module):
            found.setdefault(outer, []).append(int(name))
    return {path: tuple(positions) for path, positions in found.items()}


def _refuse_parts(model: nn.Module, built: Built, gone: LayersGone) -> None:
    """Raises `LayersStayError` where a part of a layer is gone, and the rest stays."""
    made = dict(built.model.named_modules())
    for path, module in model.named_modules():
        stands_in = isinstance(module, nn.Identity | nn.Threshold | PassesOn | GivesZeros)
        if stands_in and path in made and type(made[path]) is not type(module) and name_after(path, gone) is not None:
            raise LayersStayError(f'"{path}" is gone, and the layer around it does more than pass its input on')


def builder_of(model: nn.Module) -> Builder:
    """Builds the class of a model in which some layers pass their input on: from a config without these layers.

    What is built has the numbering of the model, and its modules at the places of these layers. Raises
    `LayersStayError` where no config says it.
    """
    builder = Builder(model)
    before = builder.build(builder.data)
    gone = passing_layers(model, before)
    _refuse_parts(model, before, gone)
    if not gone:
        return builder
    data = fewer_layers(model, builder, before, gone).data
    return Builder(model, data=data, finish=lambda made: in_original_numbering(made, gone, like=model))


def with_fewer_layers(small: nn.Module) -> tuple[nn.Module, LayersGone]:
    """A small model without the layers that pass their input on, as its class makes it of a config with fewer layers.

    small: the model; it is not changed. Raises `LayersStayError` where there is no such config.
    """
    builder = Builder(small)
    before = builder.build(builder.data)
    gone = passing_layers(small, before)
    _refuse_parts(small, before, gone)
    if not gone:
        return small, {}
    found = fewer_layers(small, builder, before, gone)
    made = without_layers(small, gone)
    construct(made, small, before, found.built, lambda path: name_before(path, gone))
    return made, gone


def fewer_layers(model: nn.Module, builder: Builder, before: Built, gone: LayersGone) -> FewerLayers:
    """The config of a model without some layers.

    model: with modules that pass their input on at their places. before: its class, built from its config.
    Raises `LayersStayError` where there is none.
    """
    values: dict[FieldPath, Any] = {}
    for path, positions in gone.items():
        count = len(before.model.get_submodule(path)._modules)
        if len(positions) == count:
            raise LayersStayError(f'no layer of "{path}" would stay')
        values |= _LayerFields(before.model, builder, before, {path: positions}, count).values()
    built = builder.build(written(builder.data, values))
    why = _other(model, before, built, gone)
    if why:
        raise LayersStayError(why)
    return FewerLayers(gone, built.data, built)


class _LayerFields:
    """The search for the numbers and lists of a config that are about the layers of one list."""

    def __init__(self, model: nn.Module, builder: Builder, before: Built, gone: LayersGone, count: int) -> None:
        self.model, self.builder, self.before, self.gone, self.count = model, builder, before, gone, count
        ((self.path, self.positions),) = gone.items()
        self.left = [number for number in range(count) if number not in self.positions]

    def values(self) -> dict[FieldPath, Any]:
        """The fields that change, with their new values. Raises `LayersStayError` where there are none."""
        data, first = self.builder.data, ""
        counts = [field for field, value in numbers_in(data) if type(value) is int and value == self.count]
        counts.sort(key=lambda field: "layer" not in name_of(field))  # the likely ones first: their reason is told
        lists = self._lists()
        for size in range(1, min(len(counts), MOST_NUMBERS) + 1):
            for least in (True, False):
                for fields in combinations(counts, size):
                    values = dict.fromkeys(fields, len(self.left))
                    for more in [lists] if least else self._more(fields, lists):
                        why = self._why_not({**values, **more})
                        if not why:
                            return {**values, **more}
                        first = first or f"with {' and '.join(map(name_of, fields))}={len(self.left)} {why}"
        name = type(self.builder.config).__name__
        raise LayersStayError(first or f'no number in {name} counts the layers of "{self.path}"')

    def _why_not(self, values: Mapping[FieldPath, Any]) -> str:
        if any(field[: len(outer)] == outer for field in values for outer in values if field != outer):
            return "a number and the list that it is in would both change"
        try:
            built = self.builder.build(written(self.builder.data, values))
        except NotBuiltError as error:
            return f"the class raises {error}"
        return _other(self.model, self.before, built, self.gone)

    def _lists(self) -> dict[FieldPath, Any]:
        """The lists and tables with an entry for each layer, which change too."""
        data = self.builder.data
        lists = {f: [v[n] for n in self.left] for f, v in sequences_in(data) if len(v) == self.count}
        lists = {field: value for field, value in lists.items() if self._matters(field, value)}
        return lists | renumbered(data, self.left)

    def _more(self, fields: Sequence[FieldPath], lists: Mapping[FieldPath, Any]) -> Iterator[dict[FieldPath, Any]]:
        """Further fields to change: lists of layers, and numbers of single ones. Tried where nothing less will do."""
        data = self.builder.data
        numbered = {}
        for field, listed in sequences_in(data):
            if field not in lists and listed and all(type(v) is int and 0 <= v < self.count for v in listed):
                numbered[field] = [self.left.index(number) for number in listed if number in self.left]
        if numbered:
            yield {**lists, **numbered}
        for field, value in numbers_in(data):
            if field not in fields and type(value) is int and 1 < value <= self.count:
                yield {**lists, field: value - sum(position < value for position in self.positions)}
        if lists:
            yield {}

    def _matters(self, field: FieldPath, shorter: Sequence[Any]) -> bool:
        """True if the class is another one, or none, where this list alone is shorter."""
        try:
            built = self.builder.build(written(self.builder.data, {field: list(shorter)}))
        except NotBuiltError:
            return True
        return bool(_other(self.before.model, self.before, built, {}))


def _other(model: nn.Module, before: Built, built: Built, gone: LayersGone) -> str:
    """The first way in which a built class is not a model without some layers; "" if it is this model.

    before: the class of the model with all layers. Numbers may be others where they count layers, are the place of a
    layer, or are no integers: these the class computes from the number of layers, and the outputs are compared later.
    """
    made, first = dict(built.model.named_modules()), dict(before.model.named_modules())
    own = {path: name_after(path, gone) for path, _ in model.named_modules()}
    expected = {after: path for path, after in own.items() if after is not None}
    for path in (*(p for p in expected if p not in made), *(p for p in made if p not in expected)):
        return f'there would be {"a" if path in made else "no"} "{path}"'
    counts = {(len(first[path]._modules), len(first[path]._modules) - len(gone[path])) for path in gone}
    for path, module in made.items():
        was = expected[path]
        if type(module) is not type(first[was]):
            return f'"{path}" would be a {type(module).__name__}, and "{was}" is a {type(first[was]).__name__}'
        places = {(before, after) for before in _numbers_of(was) for after in _numbers_of(path)}
        name = _other_attribute(first[was], module, counts | places)
        if name:
            said = [repr(vars(part).get(name)) for part in (module, first[was])]
            return f'"{path}.{name}" would be {said[0]}, and "{was}.{name}" is {said[1]}'
    for name, shape in built.shapes.items():
        was = name_before(name, gone)
        if before.shapes.get(was) != shape:
            return f'"{name}" would have shape {shape}, and "{was}" has {before.shapes.get(was)}'
    return ""


def _numbers_of(path: str) -> list[int]:
    return [int(part) for part in path.split(".") if part.isdigit()]


def _other_attribute(then: nn.Module, now: nn.Module, may_change: set[tuple[int, int]]) -> str:
    """The name of the first number, text or flag that is another one; "" if there is none.

    may_change: the integers that may be others, before and after. Numbers that are no integers may too.
    """
    for name, value in now.__dict__.items():
        was = then.__dict__.get(name)
        plain = isinstance(value, bool | int | float | str | None) and isinstance(was, bool | int | float | str | None)
        if name in OF_EVERY_MODULE or not plain or (value == was and type(value) is type(was)):
            continue
        floats = type(value) is float and type(was) is float
        integers = type(value) is int and type(was) is int and (was, value) in may_change
        if not floats and not integers:
            return name
    return ""
