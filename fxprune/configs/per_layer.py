"""Numbers of a config that hold for one layer: `per_layer_config` of `transformers`, {layer: {name: value}}.

Most classes raise on other numbers for some layers, or ignore them. So they are tried, as all numbers are: what is said
of one layer has to change the class that is built, and this layer alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fxprune.configs.fields import Data, FieldPath, read

PER_LAYER = "per_layer_config"

LAYERS = "num_hidden_layers"


def fields_by_layer(base: Data, fields: Sequence[FieldPath]) -> list[tuple[FieldPath, ...]]:
    """The fields of each layer that could stand for some numbers of a config; none where it counts no layers."""
    parents = {field[:-1] for field in fields}
    names = [field[-1] for field in fields]
    if len(parents) > 1 or not all(isinstance(name, str) and name != LAYERS for name in names):
        return []
    (parent,) = parents
    config = read(base, parent)
    count = config.get(LAYERS) if isinstance(config, Mapping) else None
    if PER_LAYER in parent or not isinstance(count, int) or count < 2:
        return []
    known = {int(key): key for key in config.get(PER_LAYER) or {}}
    return [tuple((*parent, PER_LAYER, known.get(i, str(i)), name) for name in names) for i in range(count)]


def pinned(base: Data, by_layer: Sequence[Sequence[FieldPath]]) -> Data:
    """The data in which every layer has the number that it has already in a field of its own."""
    made = copy.deepcopy(base)
    for fields in by_layer:
        for *parent, table, layer, name in fields:
            config = read(made, tuple(parent))
            config[table] = dict(config.get(table) or {})
            config[table].setdefault(layer, {})
            config[table][layer] = {name: config[name], **config[table][layer]}
    return made


def tidied(data: Data, original: Data) -> Data:
    """The data without fields of layers that say what the number for all layers says.

    Where all layers have the same number, it becomes the one for all.

    original: the data of the config as it was given; it has fields of layers if the result has an empty table of them.
    """
    made = copy.deepcopy(data)
    for config, given in _with_layers(made, original):
        table = config[PER_LAYER]
        count = config.get(LAYERS)
        for name in {name for own in table.values() for name in own if name in config}:
            values = [own[name] for own in table.values() if name in own]
            if len(values) == count and all(value == values[0] for value in values):
                config[name] = values[0]
        left = {
            layer: {name: value for name, value in own.items() if name not in config or config[name] != value}
            for layer, own in table.items()
        }
        config[PER_LAYER] = {layer: own for layer, own in left.items() if own}
        if not config[PER_LAYER] and PER_LAYER not in given:
            del config[PER_LAYER]
    return made


def renumbered(data: Any, left: Sequence[int], keys: FieldPath = ()) -> dict[FieldPath, Any]:
    """Every table of fields of layers, as it is where some layers are gone. left: the numbers of those that stay."""
    found: dict[FieldPath, Any] = {}
    if isinstance(data, Mapping):
        for key, value in data.items():
            if key == PER_LAYER and isinstance(value, Mapping):
                kept = {int(layer): own for layer, own in value.items() if int(layer) in left}
                found[(*keys, key)] = {str(left.index(layer)): own for layer, own in sorted(kept.items())}
            else:
                found |= renumbered(value, left, (*keys, key))
    return found


def _with_layers(data: Any, original: Any) -> Iterator[tuple[Data, Data]]:
    """The config and those inside it that have fields for single layers, and what they were."""
    if isinstance(data, dict) and isinstance(original, Mapping):
        for key, value in [*data.items()]:
            yield from _with_layers(value, original.get(key))
        if isinstance(data.get(PER_LAYER), dict):
            yield data, {**original}
