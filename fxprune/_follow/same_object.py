"""A model takes over what its smaller copy has, and stays the same object."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from fxprune.capture.containers import slots_of
from fxprune.capture.held_objects import redirect


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
    """Give every module of a model the class and the attributes of its small counterpart, which share them then.

    First all that the small model holds refers to the model's own modules, and to the tables of hooks that the handles
    of the user's hooks refer to.
    """
    olds = dict(model.named_modules(remove_duplicate=False))
    news = dict(small.named_modules(remove_duplicate=False))
    counterparts = {id(new): olds[path] for path, new in reversed(news.items()) if path in olds}
    unlike = [(counterparts[id(new)], new) for new in small.modules() if id(new) in counterparts]
    unlike = [(old, new) for old, new in unlike if old.__dict__ is not new.__dict__]
    tables = [pair for old, new in unlike for pair in _tables_of_hooks(old.__dict__, new.__dict__)]
    redirect(small, counterparts | {id(new): old for old, new in tables})
    for hooks, made in tables:
        hooks.clear()
        hooks.update(made)
    for old, new in unlike:
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
    if isinstance(new, list) and isinstance(old, list):
        list.__setitem__(old, slice(None), new)


def _tables_of_hooks(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    """The tables of hooks of a module and of its counterpart, from their attributes."""
    return [
        (hooks, new[name])
        for name, hooks in old.items()
        if name.endswith("_hooks") and isinstance(hooks, dict) and isinstance(new.get(name), dict)
        if hooks is not new[name]
    ]
