"""Weak references, and the same ones that refer to something else.

`copy.deepcopy` gives a weak reference back as it is, so that the one of a copy refers to the original.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

from fxprune.capture.per_class import once_per_class

_TABLES = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)
_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
_KINDS = (weakref.ref, weakref.WeakSet, *_TABLES, *_PROXIES)


def is_weak(value: Any) -> bool:
    """True for a weak reference, a proxy, and a set or a dict of weak references."""
    return _is_weak_kind(type(value))


@once_per_class
def _is_weak_kind(kind: type) -> bool:
    return issubclass(kind, _KINDS)


def is_copied_as_it_is(value: Any) -> bool:
    """True for weak references that `copy.deepcopy` refuses, and for proxies, whose referent it copies once more."""
    kind = type(value)
    return kind in _PROXIES or (issubclass(kind, weakref.ref) and kind is not weakref.ref)


def strong_parts(value: Any) -> list[Any]:
    """The parts that a dict of weak references holds all the same: its values or its keys."""
    kind: Any = type(value)
    if issubclass(kind, weakref.WeakKeyDictionary):
        return list(weakref.WeakKeyDictionary.values(value))
    return list(weakref.WeakValueDictionary.keys(value)) if issubclass(kind, weakref.WeakValueDictionary) else []


def referents_of(value: Any) -> list[Any]:
    """The objects that a weak reference, or a set or a dict of them, refers to or holds. Those that are gone are left
    out."""
    kind = type(value)
    if kind in _PROXIES:
        found = [_behind(value)]
    elif issubclass(kind, weakref.ref):
        found = [value()]
    elif issubclass(kind, _TABLES):
        found = [part for pair in _items(value) for part in pair]
    else:
        found = list(weakref.WeakSet.__iter__(value))
    return [part for part in found if part is not None]


def with_referents(value: Any, of: Callable[[Any], Any]) -> Any:
    """A weak reference, or a set or dict of them, that refers to what `of` gives for each object; itself if all stay.

    The objects must be held elsewhere. A function that is called when an object goes is kept, but for proxies, which do
    not tell it.
    """
    kind: Any = type(value)
    if kind in _PROXIES:
        before = _behind(value)
        now = before if before is None else of(before)
        return value if now is before else weakref.proxy(now)
    if issubclass(kind, weakref.ref):
        before = value()
        now = before if before is None else of(before)
        return value if now is before else _reference(value, now)
    found = _items(value) if issubclass(kind, _TABLES) else [(item, None) for item in weakref.WeakSet.__iter__(value)]
    made = [(of(key), of(item)) for key, item in found]
    if all(new is old for pair, same in zip(made, found, strict=True) for new, old in zip(pair, same, strict=True)):
        return value
    base: Any = next(base for base in (*_TABLES, weakref.WeakSet) if issubclass(kind, base))
    new = kind.__new__(kind)
    new.__dict__.update(value.__dict__)  # what a derived class has beside
    base.__init__(new, made if base in _TABLES else [key for key, _ in made])
    return new


def _reference(value: Any, now: Any) -> Any:
    """A weak reference of the same class to another object, with the attributes that a derived class has."""
    kind: Any = type(value)
    if kind is weakref.ref:
        return kind(now, value.__callback__)
    if issubclass(kind, weakref.WeakMethod):  # the user's function is in a function of its own, made for this object
        return kind(now, inspect.getclosurevars(value.__callback__).nonlocals.get("callback"))
    new = weakref.ref.__new__(kind, now, value.__callback__)
    for name in (name for part in kind.__mro__ for name in part.__dict__.get("__slots__", ())):
        if hasattr(value, name):
            setattr(new, name, getattr(value, name))
    getattr(new, "__dict__", {}).update(getattr(value, "__dict__", {}))
    return new


def _items(table: Any) -> list[tuple[Any, Any]]:
    base: Any = next(base for base in _TABLES if issubclass(type(table), base))
    return list(base.items(table))


def _behind(proxy: Any) -> Any:
    """The object behind a proxy, which passes every attribute on; None if it is gone."""
    try:
        return proxy.__repr__.__self__
    except ReferenceError:
        return None
