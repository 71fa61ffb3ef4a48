"""A model takes over what its smaller copy has, and stays the same object."""

from __future__ import annotations

import contextlib
import signal
import threading
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from fxprune.capture.containers import MOST_PARTS, parts, slots_of, with_parts
from fxprune.capture.weak_references import is_weak, with_referents


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Holds back signals, such as an interrupt from the keyboard, until all that is done here is done.

    Only signals whose handler is Python code: others end the process. They reach the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[Any, Any]] = []
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    held = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in held:
            signal.signal(number, lambda *what: came.append(what))
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        for number, frame in came:
            held[number](number, frame)


def become(model: nn.Module, small: nn.Module) -> None:
    """Give every module of a model the class and the attributes of its small counterpart, which share them then."""
    olds = dict(model.named_modules(remove_duplicate=False))
    news = dict(small.named_modules(remove_duplicate=False))
    counterparts = {id(new): olds[path] for path, new in reversed(news.items()) if path in olds}
    for new in {id(new): new for new in news.values()}.values():
        for name, value in new.__dict__.items():
            new.__dict__[name] = _with_counterparts(value, counterparts)
        old = counterparts.get(id(new))
        if old is not None and old.__dict__ is not new.__dict__:
            _keep_hooks(old.__dict__, new.__dict__)
            object.__setattr__(old, "__class__", type(new))
            object.__setattr__(old, "__dict__", new.__dict__)
            _take_over_others(old, new)


def _take_over_others(old: Any, new: Any) -> None:
    """Give a module what its small counterpart has beside its `__dict__`: values in slots, items of a dict."""
    for name in slots_of(type(new)):
        if hasattr(new, name):
            object.__setattr__(old, name, getattr(new, name))
    if isinstance(new, dict) and isinstance(old, dict):
        dict.clear(old)
        dict.update(old, new)


def _with_counterparts(value: Any, counterparts: Mapping[int, nn.Module]) -> Any:
    """A value of an attribute, with the modules of the model in the place of their small counterparts.

    A list or dict is changed; of a tuple or a bound method there is a new one.
    """
    if isinstance(value, nn.Module):
        return counterparts.get(id(value), value)
    if isinstance(value, types.MethodType) and id(value.__self__) in counterparts:
        return types.MethodType(value.__func__, counterparts[id(value.__self__)])
    if is_weak(value):
        return with_referents(value, lambda part: _with_counterparts(part, counterparts))
    if isinstance(value, (dict, list, tuple)) and len(value) <= MOST_PARTS:
        found = parts(value)
        new = {key: _with_counterparts(part, counterparts) for key, part in found.items()}
        return with_parts(value, new) if any(new[key] is not part for key, part in found.items()) else value
    return value


def _keep_hooks(old: Mapping[str, Any], new: dict[str, Any]) -> None:
    """Put the hooks into the dicts that the handles of the user's hooks refer to."""
    for name, hooks in old.items():
        if name.endswith("_hooks") and isinstance(hooks, dict) and isinstance(new.get(name), dict):
            made = dict(new[name])
            hooks.clear()
            hooks.update(made)
            new[name] = hooks
