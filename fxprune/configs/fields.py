"""The numbers of a config as data (`config.to_dict()`), by the keys that lead to them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FieldPath = tuple[Any, ...]
"""The keys that lead to a number: ("text_config", "hidden_size"), ("hidden_sizes", 0)."""

Data = dict[str, Any]

NO_SIZES = frozenset({"id2label", "label2id", "transformers_version"})
"""Keys under which there are names and versions."""

LARGEST_FACTOR = 64
"""Floats up to this may be factors of widths, such as `mlp_ratio`; larger ones are not tried."""


def numbers_in(data: Any, keys: FieldPath = ()) -> Iterator[tuple[FieldPath, int | float]]:
    """Every number above 1, with its field. Floats are those that may be factors."""
    if (type(data) is int and data > 1) or (type(data) is float and 1 <= data <= LARGEST_FACTOR):
        yield keys, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            if key not in NO_SIZES:
                yield from numbers_in(value, (*keys, key))
    elif isinstance(data, list | tuple):
        for position, value in enumerate(data):
            yield from numbers_in(value, (*keys, position))


def empty_in(data: Any, keys: FieldPath = ()) -> Iterator[FieldPath]:
    """Every field that is None."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if value is None:
                yield (*keys, key)
            elif key not in NO_SIZES:
                yield from empty_in(value, (*keys, key))


def sequences_in(data: Any, keys: FieldPath = ()) -> Iterator[tuple[FieldPath, Sequence[Any]]]:
    """Every list of numbers, texts or flags, with its field."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            if key not in NO_SIZES:
                yield from sequences_in(value, (*keys, key))
    elif isinstance(data, list | tuple) and all(isinstance(part, int | float | str | None) for part in data):
        yield keys, data


def read(data: Any, field: FieldPath) -> Any:
    """The value of a field."""
    for key in field:
        data = data[key]
    return data


def written(data: Data, values: Mapping[FieldPath, Any]) -> Data:
    """A copy of the data with other values in some fields."""
    made = copy.deepcopy(data)
    for field, value in values.items():
        _write(made, field, value)
    return made


def _write(data: Any, field: FieldPath, value: Any) -> None:
    first, *rest = field
    if rest and isinstance(data[first], tuple):
        data[first] = list(data[first])
    if rest:
        _write(data[first], tuple(rest), value)
    else:
        data[first] = value


def name_of(field: FieldPath) -> str:
    """The name of a field for a reader: "text_config.hidden_size", "hidden_sizes[0]"."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in field).lstrip(".")
