"""Locks, conditions, Python modules and sparse tensors, which `copy.deepcopy` refuses and a copy can have all the same.

A copy gets a lock of its own, which is open: it guards the copy and nothing else. A Python module is one thing in a
process, and is shared. A generator, a file or a socket is neither: two models would take from it what the other needs.
"""

from __future__ import annotations

import copy
import queue
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from fxprune.capture.containers import MOST_STEPS, items_of, key_text
from fxprune.capture.layouts import is_packed, is_sparse
from fxprune.capture.library_state import fill

CopyT = TypeVar("CopyT")

_FILLED: tuple[Any, ...] = (threading.local, queue.SimpleQueue)
"""Values of threads and queues, which get what those of the original hold."""
_LOCKS: Mapping[type, Callable[[], Any]] = {type(make()): make for make in (threading.Lock, threading.RLock, *_FILLED)}
_NUMBERS = (int, float, bool, complex, str, bytes, type(None))
_NO_PARTS = (nn.Module, torch.Tensor, type, types.FunctionType, str, bytes, int, float, type(None))


def copied_with_locks(
    model: nn.Module, memo: Mapping[int, Any], make: Callable[[dict[int, Any]], CopyT], said: list[str] | None = None
) -> CopyT:
    """A copy that `make` makes with a memo of `copy.deepcopy`; with locks of its own where that fails without them.

    said: gets a sentence about each lock and Python module, if they were needed.
    """
    try:
        return make(dict(memo))
    except (TypeError, copy.Error, NotImplementedError):  # "cannot pickle '_thread.lock' object", and what classes say
        found = list(_refused(model))
        if not found:
            raise
        own = {**_stand_ins(found), **memo}
        made = make(own)
        _fill(found, own)
        if said is not None:
            said.extend(_sentence(name, value) for name, value in found if not isinstance(value, torch.Tensor))
        return made


def copied_alone(name: str, value: Any, memo: dict[int, Any], said: list[str] | None = None) -> Any:
    """A deep copy of a value, with locks of its own; the value itself where it cannot be copied, as a socket.

    memo: that of the copy, which gets what is copied. said: gets a sentence about each lock and Python module.
    """
    if type(value) in _NUMBERS:
        return value
    own = dict(memo)
    try:
        made = copy.deepcopy(value, own)
    except Exception:  # of a class of the user's, too
        found = list(_refused_in(name, value, {}))
        own = {**memo, **_stand_ins(found)}
        try:
            made = copy.deepcopy(value, own)
            _fill(found, own)
        except Exception:
            return value
        if said is not None:
            said.extend(_sentence(*each) for each in found if not isinstance(each[1], torch.Tensor))
    kept = own.pop(id(own), [])  # what `deepcopy` keeps alive
    memo.update(own)
    memo.setdefault(id(memo), []).extend(kept)
    return made


class OtherClassError(Exception):
    """A `__deepcopy__` that makes a module of another class. Internal: `why_no_copy` says it to the user."""

    def __init__(self, path: str, original: nn.Module, made: Any) -> None:
        self.at = f'"{path}"' if path else "the model"
        self.kind = type(original).__name__
        super().__init__(f"the copy of it is of class {type(made).__name__}, and the module is of class {self.kind}")


def why_no_copy(model: nn.Module, memo: Mapping[int, Any], error: Exception) -> tuple[str, str, str]:
    """The parts of an error about a copy that failed: where, why, and what to do."""
    if isinstance(error, OtherClassError):
        do = "let the `__deepcopy__` of this module, or of one around it, give the same class, or leave it out"
        return f"{error.at}, of class {error.kind}", str(error), do
    do = "keep what cannot be copied out of the model's attributes, or give it a __deepcopy__"
    return what_cannot_be_copied(model, memo), f"{type(error).__name__}: {error}", do


def what_cannot_be_copied(model: nn.Module, memo: Mapping[int, Any]) -> str:
    """The name of the first attribute that `copied_with_locks` fails on, and its type; the model if none fails alone.

    memo: the memo of the copy that failed.
    """
    own = {**memo, **_stand_ins(list(_refused(model))), **{id(module): module for module in model.modules()}}
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            try:
                copy.deepcopy(value, dict(own))
            except Exception:
                return f"{path}.{name}".lstrip(".") + f", of type {type(value).__name__}"
    return "the model"


def _stand_ins(found: Iterable[tuple[str, Any]]) -> dict[int, Any]:
    made: dict[int, Any] = {}
    for _, value in found:
        made[id(value)] = _stand_in(value, made)
    return made


def _stand_in(value: Any, made: Mapping[int, Any]) -> Any:
    if isinstance(value, types.ModuleType):
        return value
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) is threading.Condition:  # it holds bound methods of its lock, which stay those of the original
        return threading.Condition(made[id(vars(value)["_lock"])])
    return _LOCKS[type(value)]()


def _fill(found: Iterable[tuple[str, Any]], memo: dict[int, Any]) -> None:
    """Give the new queues and values of threads copies of what those of the original hold. memo: that of the copy."""
    for _, value in found:
        if type(value) in _FILLED:
            fill(memo[id(value)], value, lambda part: copy.deepcopy(part, memo))


def _sentence(name: str, value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return f"{name} is the Python module {value.__name__} in the small model too"
    if type(value) is threading.local:
        return f"{name} is a new threading.local in the small model, which has the values of this thread alone"
    if type(value) is queue.SimpleQueue:
        return f"{name} is a queue of its own in the small model, with the items that it holds now"
    kind = type(value).__name__.rpartition(".")[2]
    return f"{name} is a new {kind} in the small model: one of Python's threads cannot be copied"


def _refused(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The locks, conditions, Python modules and sparse tensors in the attributes of a model, with their names. A lock
    is before those that hold it."""
    seen: dict[int, Any] = {}
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            yield from _refused_in(f"{path}.{name}".lstrip("."), value, seen)


def _refused_in(name: str, value: Any, seen: dict[int, Any], steps: int = 0) -> Iterator[tuple[str, Any]]:
    kind = type(value)
    if kind is torch.Tensor and (is_sparse(value) or is_packed(value)):
        yield name, value
    if id(value) in seen or issubclass(kind, _NO_PARTS) or steps > MOST_STEPS:
        return
    seen[id(value)] = value
    if kind in _LOCKS or issubclass(kind, types.ModuleType):
        yield name, value
        return
    if issubclass(kind, dict):
        for key, part in list(dict.items(value)):
            yield from _refused_in(name + key_text(key), part, seen, steps + 1)
    elif issubclass(kind, (list, tuple, deque)):
        for position, part in enumerate(items_of(value)):
            yield from _refused_in(f"{name}[{position}]", part, seen, steps + 1)
    for attribute, part in list(getattr(value, "__dict__", {}).items()):
        yield from _refused_in(f"{name}.{attribute}", part, seen, steps + 1)
    if kind is threading.Condition:
        yield name, value
