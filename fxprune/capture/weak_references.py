"""Weak references in the attributes of modules, and copies of them that refer to something else.

`copy.deepcopy` gives a weak reference back as it is, so that the one of a copy refers to the original.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from fxprune.capture.containers import found_in, with_part

_TABLES = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
_KINDS = (weakref.ref, weakref.WeakMethod, weakref.WeakSet, *_TABLES)


def is_weak(value: Any) -> bool:
    """True for a weak reference, and for a set or a dict of them."""
    return type(value) in _KINDS


def with_referents(value: Any, of: Callable[[Any], Any]) -> Any:
    """A weak reference, or a set or dict of them, that refers to what `of` gives for each object; itself if all stay.

    The objects must be held elsewhere. A function that is called when an object goes is kept.
    """
    kind: Any = type(value)
    if kind is weakref.ref or kind is weakref.WeakMethod:
        before = value()
        now = before if before is None else of(before)
        return value if now is before else kind(now, value.__callback__)
    found = list(value.items()) if kind in _TABLES else [(item, None) for item in value]
    made = [(of(key), of(item)) for key, item in found]
    if all(new is old for pair, same in zip(made, found, strict=True) for new, old in zip(pair, same, strict=True)):
        return value
    return kind(made) if kind in _TABLES else kind(key for key, _ in made)


def point_to_copies(made: nn.Module, copies: Mapping[int, nn.Module]) -> None:
    """Let the weak references in the attributes of a copy refer to its own modules, also those inside containers.

    copies: id of a module of the original -> that of the copy.
    """

    def counterpart(value: Any) -> Any:
        if isinstance(value, types.MethodType):
            owner = copies.get(id(value.__self__), value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        return copies.get(id(value), value) if isinstance(value, nn.Module) else value

    seen: dict[int, Any] = {}
    for module in made.modules():
        for name, value in list(module.__dict__.items()):
            for keys, weak in [] if name in _OF_EVERY_MODULE else list(found_in(value, is_weak, seen)):
                new = with_referents(weak, counterpart)
                if new is not weak:
                    module.__dict__[name] = with_part(module.__dict__[name], keys, new) if keys else new


_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
