"""The names of a checkpoint and those of the model's parameters: the conversions of the model's own library."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.depth.numbering import LayersGone, name_after
from fxprune.errors import FileError, nearest
from fxprune.streaming.layout import MovedTensor, StoredPart, UnknownMoveError


@dataclass(frozen=True)
class StoredNames:
    """The meaning of the names of a checkpoint.

    parts: the boxes of stored tensors that are boxes of parameters. ignored: the stored tensors that the class ignores.
    """

    parts: tuple[StoredPart, ...]
    ignored: tuple[str, ...] = ()


def names_of(model: nn.Module, stored: Mapping[str, tuple[int, ...]], folder: object = "") -> StoredNames:
    """The parameters to which stored tensors belong.

    stored: name -> shape. folder: of the checkpoint, for errors.
    Raises `FileError` for a tensor without a parameter, or of another shape, and for a conversion that is no move of
    numbers, or whose tensors are not all there.
    """
    state = model.state_dict(keep_vars=True)
    library = _Library(model)
    parts: list[StoredPart] = []
    ignored: list[str] = []
    waiting: dict[str, Any] = {}
    computed = {_ends(name) for name, _ in model.named_buffers() if name not in state}
    for name in sorted(stored, key=_natural):
        target, pattern = library.target_of(name, state)
        if target not in state:
            if not (_left_out(model, "_keys_to_ignore_on_load_unexpected", name) or _ends(target) in computed):
                raise FileError(
                    f'no parameter of {type(model).__name__} belongs to "{name}" of the checkpoint',
                    at=f"it would be {target}" if target != name else "",
                    why=nearest(target, state),
                    do="pass the class of the model (model_class=) that the checkpoint is of",
                )
            ignored.append(name)
        elif pattern is None:
            parts += MovedTensor.of(name, _fitting(name, stored[name], target, state)).parts(target)
        else:
            converter = waiting.setdefault(target, library.converter_of(pattern))
            converter.add_tensor(target, name, pattern, MovedTensor.of(name, stored[name]))
    for target, converter in waiting.items():
        _refuse_gaps(converter, target, state, folder)
        parts += _converted(converter, target, model, state)
    return StoredNames(tuple(parts), tuple(ignored))


def _ends(name: str) -> str:
    """The last two words of a name: older checkpoints have what the class computes, in every layer."""
    return ".".join(name.split(".")[-2:])


def _fitting(name: str, shape: tuple[int, ...], target: str, state: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """The shape. Raises `FileError` if the parameter has another one."""
    own = tuple(state[target].shape)
    if own != shape:
        raise FileError(
            "the checkpoint is of another model",
            at=f'"{name}" has shape {shape}',
            why=f'"{target}" of the model has shape {own}',
            do="check that the config and the files belong together",
        )
    return shape


def _refuse_gaps(converter: Any, target: str, state: Mapping[str, torch.Tensor], folder: object) -> None:
    """Raises `FileError` where tensors are missing that are numbered, such as one matrix of one expert."""
    sources = [name for names in converter.layer_targets.values() for name in names]
    words = [name.split(".") for name in sources]
    varying = [{position for position, word in enumerate(one) if word.isdigit()} for one in words]
    numbers = {position: {one[position] for one in words if len(one) > position} for position in set().union(*varying)}
    places = [position for position, found in numbers.items() if len(found) > 1]
    if len(places) != 1 or any(places[0] not in found for found in varying):
        return
    (place,) = places
    merged = [one for one in converter.operations if type(one).__name__ == "MergeModulelist"]
    sizes = [state[target].shape[one.dim] for one in merged if target in state]
    count = max([int(number) + 1 for number in numbers[place]] + sizes)
    kinds = dict.fromkeys((*one[:place], "", *one[place + 1 :]) for one in words)
    wanted = [".".join((*kind[:place], str(number), *kind[place + 1 :])) for number in range(count) for kind in kinds]
    missing = [name for name in wanted if name not in {*sources}]
    if missing:
        raise FileError(
            f'the checkpoint has no "{missing[0]}"',
            at=f'"{folder}", for "{target}" of the model',
            why=f"that is made of {len(wanted)} tensors, of which {len(missing)} "
            + ("is missing" if len(missing) == 1 else f"are missing: {', '.join(missing[:4])}"),
            do="load all files of the checkpoint again, and its index: no file has this tensor",
        )


def _converted(converter: Any, target: str, model: nn.Module, state: Mapping[str, torch.Tensor]) -> list[StoredPart]:
    """The parts of the tensors that a converter of the library makes parameters of."""
    sources = [name for names in converter.layer_targets.values() for name in names]
    for position, operation in enumerate(converter.operations):
        if type(operation).__name__ in _PERMUTATIONS:
            converter.operations[position] = _Permuted(operation)
    try:
        made = converter.convert(target, model=model, config=getattr(model, "config", None))
        parts: list[StoredPart] = []
        for name, found in made.items():
            value = found[0] if isinstance(found, list) else found
            if name not in state:
                raise UnknownMoveError(f'it makes "{name}", which the model has not')
            if not isinstance(value, MovedTensor) or tuple(value.shape) != tuple(state[name].shape):
                shape = tuple(getattr(value, "shape", ()))
                raise UnknownMoveError(f'"{name}" would have shape {shape}, it has {tuple(state[name].shape)}')
            parts += value.parts(name)
        return parts
    except Exception as error:  # whatever the library raises on tensors that it cannot convert
        operations = ", ".join(type(operation).__name__ for operation in converter.operations)
        raise FileError(
            f'the conversion of "{sources[0]}" to "{target}" cannot be followed',
            at=operations,
            why=f"{type(error).__name__}: {error}",
            do="load the model and save it with save_original_format=False, then stream that directory",
        ) from error


_PERMUTATIONS = ("PermuteForRope", "Interleave")
"""Operations of the library that reorder one dimension, by reshaping."""


class _Permuted:
    """Such an operation on values: it is run on the indices of the dimension that it reorders."""

    def __init__(self, operation: Any) -> None:
        self.operation = operation

    def convert(self, values: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """The reordered values."""
        dim = getattr(self.operation, "dim", 0)
        made: dict[str, Any] = {}
        for key, found in values.items():
            value = found[0] if isinstance(found, list) else found
            size = value.shape[dim]
            indices = torch.arange(size).reshape([size if d == dim else 1 for d in range(dim + 1)])
            for name, moved in self.operation.convert({key: [indices]}, **options).items():
                moved = moved[0] if isinstance(moved, list) else moved
                made[name] = value.taken(dim, np.asarray(moved.reshape(-1).numpy(), dtype=np.int64))
        return made


class _Library:
    """The library of a model: its renamings and its converters, none if it has no such thing."""

    def __init__(self, model: nn.Module) -> None:
        self.prefix = str(getattr(model, "base_model_prefix", "") or "")
        package = type(model).__module__.partition(".")[0]
        self.renamings: list[Any] = []
        self.converters: list[Any] = []
        try:
            self._loading: Any = importlib.import_module(f"{package}.core_model_loading")
            mapping = importlib.import_module(f"{package}.conversion_mapping").get_model_conversion_mapping(model)
        except (ImportError, AttributeError):  # another library, or an older one
            self._loading = None
            return
        self.renamings = [one for one in mapping if isinstance(one, self._loading.WeightRenaming)]
        self.converters = [one for one in mapping if isinstance(one, self._loading.WeightConverter)]
        self._by_pattern = {pattern: one for one in self.converters for pattern in one.source_patterns}

    def target_of(self, name: str, state: Mapping[str, torch.Tensor]) -> tuple[str, str | None]:
        """The parameter to which a stored tensor belongs, and the pattern of the converter that makes it, if any."""
        if self._loading is None:
            return _with_prefix(name, self.prefix, state), None
        rename: Any = self._loading.rename_source_key
        target, pattern = rename(name, self.renamings, self.converters, self.prefix, state)
        if target not in state and name in state:
            target, pattern = rename(name, [], [], self.prefix, state)
        if target not in state and _with_prefix(name, self.prefix, state) in state:
            return _with_prefix(name, self.prefix, state), None
        return str(target), pattern

    def converter_of(self, pattern: str) -> Any:
        """A converter of one parameter."""
        return copy.deepcopy(self._by_pattern[pattern])


def renumbered(parts: Iterable[StoredPart], gone: LayersGone) -> dict[str, str]:
    """The names of stored tensors whose layers have other numbers where some layers are gone -> their new names.

    A checkpoint may leave out the prefix of a list of layers, or have another one.
    """
    made: dict[str, str] = {}
    for part in parts:
        for path in gone:
            before, after = part.parameter, name_after(part.parameter, gone)
            if after is None or after == before or not before.startswith(f"{path}."):
                continue
            old, new = (name[len(path) + 1 :].partition(".")[0] for name in (before, after))
            words = path.split(".")
            ends = [".".join((*words[start:], "")) for start in range(len(words))]
            end = next((end for end in ends if f".{end}{old}." in f".{part.stored}"), None)
            if end is None:
                raise FileError(
                    f'"{part.stored}" of the checkpoint does not say its layer',
                    at=f'it belongs to "{before}", which is layer {new} of the result',
                    why=f'no "{path}.{old}" is in the name',
                    do='make the plan without uniform="config", or load the model and save it first',
                )
            head, _, tail = f".{part.stored}".partition(f".{end}{old}.")
            made[part.stored] = f"{head}.{end}{new}.{tail}"[1:]
    return made


def _with_prefix(name: str, prefix: str, state: Mapping[str, torch.Tensor]) -> str:
    """The name with the prefix of the base model, or without it, as the model has it."""
    if name in state or not prefix:
        return name
    added, without = f"{prefix}.{name}", name.removeprefix(f"{prefix}.")
    return added if added in state else without if without in state else name


def _left_out(model: nn.Module, attribute: str, name: str) -> bool:
    """True if a class says by one of its patterns that a name may be missing or too much."""
    patterns: Iterable[str] = getattr(model, attribute, None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names by their value."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split(".")]


def tied_to(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer in `state_dict` -> the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in model.state_dict(keep_vars=True).items()}


def without_partner(model: nn.Module, wanted: Iterable[str], parts: Iterable[StoredPart]) -> list[str]:
    """The wanted parameters that no stored tensor has, neither under another of their names."""
    tied = tied_to(model)
    have = {tied.get(part.parameter, part.parameter) for part in parts}
    missing = [name for name in wanted if tied.get(name, name) not in have]
    return [name for name in missing if not _left_out(model, "_keys_to_ignore_on_load_missing", name)]
