"""The state that a model keeps between two calls: what its forward wrote into attributes and buffers."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxprune.capture.code import is_torch
from fxprune.capture.containers import count_of, has_many_parts, items_of
from fxprune.capture.given_attributes import given_attributes, parameters_with_attributes
from fxprune.capture.library_state import is_iterator, parts_of_iterator

_OF_TORCH = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"}
_OF_TORCH |= {name for name in vars(nn.Module()) if name.endswith("_hooks")}

_PLAIN = frozenset({int, float, bool, str, type(None)})
"""The types of values that nothing can be written into."""

_DEPTH = 4
"""The depth to which containers and objects in attributes are looked into."""


class State:
    """A note of the state of a model, taken before a call.

    users: True to leave out what modules of torch keep, such as the statistics of a norm. It changes numbers only: a
        second call does the same as the first one.
    """

    def __init__(self, model: nn.Module, *, users: bool = False) -> None:
        self._model, self._users, self._before = model, users, _state_of(model, users)

    def changed(self) -> bool:
        """True if the state is another one now."""
        return not _same(self._before, _state_of(self._model, self._users))

    def changed_names(self) -> Iterator[str]:
        """The attributes and buffers that have another value now, as paths from the model."""
        for (path, name), value in _state_of(self._model, self._users).items():
            if (path, name) not in self._before or not _same(self._before[path, name], value):
                yield f"{path}.{name}" if path else name

    def changed_tensors(self) -> Iterator[torch.Tensor]:
        """The tensors in the attributes and buffers that have another value now."""
        for place, value in _state_of(self._model, self._users).items():
            if place not in self._before or not _same(self._before[place], value):
                yield from _tensors_in(value)


def _state_of(model: nn.Module, users: bool) -> dict[tuple[str, str], Any]:
    """(path of a module, name of an attribute or buffer) -> its value, in a form that later writes do not change."""
    found = {}
    for path, module in model.named_modules():
        torchs = users and is_torch(type(module).__module__)
        own = list(_given(module)) if torchs else [*module.__dict__.items(), *module._buffers.items()]
        for name, parameter in parameters_with_attributes(module):
            own += [(f"{name}.{attribute}", value) for attribute, value in given_attributes(parameter).items()]
        for name, value in own:
            if name not in _OF_TORCH and not name.endswith("_hooks"):
                found[path, name] = value if type(value) in _PLAIN else _note(value, _DEPTH)
    return found


def _given(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes that code has given a module of torch, those of plain values left out.

    A weight is none that a hook of torch computes before each call.
    """
    computed = {name.removesuffix(end) for name in module._parameters for end in ("_orig", "_g")}
    for name, value in module.__dict__.items():
        if not (type(value) in _PLAIN or name in _OF_TORCH or name in computed or name.startswith("_")):
            yield name, value


def _note(value: Any, depth: int) -> Any:
    if isinstance(value, torch.Tensor):
        shape = None if value.is_nested else tuple(value.shape)
        return value, None if value.is_inference() else value._version, shape
    if isinstance(value, (nn.Module, types.ModuleType)) or not depth:
        return value
    if has_many_parts(value):
        return [value, count_of(value)]
    if isinstance(value, dict):
        return [(key, _note(part, depth - 1)) for key, part in dict.items(value)]
    if type(value) is tuple and all(type(part) in _PLAIN for part in value):
        return value
    if isinstance(value, (list, tuple, deque)):
        return [_note(part, depth - 1) for part in items_of(value)]
    if isinstance(value, (set, frozenset)):
        return [_note(part, depth - 1) for part in value]
    if is_iterator(type(value)):
        return [_note(part, depth - 1) for part in parts_of_iterator(value)]
    own = getattr(value, "__dict__", None)
    if own and not callable(value) and not isinstance(value, type):
        return value, [(key, _note(part, depth - 1)) for key, part in own.items()]
    return value


def _tensors_in(note: Any) -> Iterator[torch.Tensor]:
    if isinstance(note, torch.Tensor):
        yield note
    elif isinstance(note, (list, tuple)):
        for part in note:
            yield from _tensors_in(part)


def _same(a: Any, b: Any) -> bool:
    """True if two notes are equal. Objects are the same ones, numbers and texts are equal."""
    if a is b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, (str, bytes, bool, int, float, complex)) and type(a) is type(b) and a == b
