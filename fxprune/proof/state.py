"""The state that a model keeps between two calls: what its forward wrote into attributes and buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_OF_TORCH = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook"}
_DEPTH = 4
"""The depth to which containers and objects in attributes are looked into."""


class State:
    """A note of the state of a model, taken before a call."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._before = model, _state_of(model)

    def changed(self) -> bool:
        """True if the state is another one now."""
        return not _same(self._before, _state_of(self._model))


def _state_of(model: nn.Module) -> dict[tuple[str, str], Any]:
    """(path of a module, name of an attribute or buffer) -> its value, in a form that later writes do not change."""
    found = {}
    for path, module in model.named_modules():
        for name, value in (*module.__dict__.items(), *module._buffers.items()):
            if name not in _OF_TORCH and not name.endswith("_hooks"):
                found[path, name] = _note(value, _DEPTH)
    return found


def _note(value: Any, depth: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value, value._version, tuple(value.shape)
    if isinstance(value, nn.Module) or not depth:
        return value
    if isinstance(value, dict):
        return [(key, _note(part, depth - 1)) for key, part in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_note(part, depth - 1) for part in value]
    own = getattr(value, "__dict__", None)
    if own and not callable(value) and not isinstance(value, type):
        return value, [(key, _note(part, depth - 1)) for key, part in own.items()]
    return value


def _same(a: Any, b: Any) -> bool:
    """True if two notes are equal. Objects are the same ones, numbers and texts are equal."""
    if a is b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, (str, bytes, bool, int, float, complex)) and type(a) is type(b) and a == b
