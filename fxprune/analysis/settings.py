"""The integers among the attributes of a model's modules: which ones there are, and how each is read and replaced.

A setting such as `self.num_heads` may count something. `marked_integers` finds out what, and `rewrite/attributes` gives
it its new value. This file only knows where settings stand: in an attribute, or in a container that an attribute holds,
such as `self.axes["heads"]`, `self.sizes[1]` or `self.config.hidden_size`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import fx, nn

from fxprune.capture.code import names_read_by
from fxprune.capture.containers import (
    MOST_PARTS,
    MOST_STEPS,
    has_many_parts,
    is_container,
    key_text,
    parts,
    slots_of,
    with_part,
    with_parts,
)
from fxprune.errors import RewriteError, text_of

Setting = tuple[str, str, tuple[Any, ...]]
"""The path of a module, the name of an attribute, and the keys that lead to the integer inside it: () if it is one.

Keys are those of `fxprune.capture.containers.parts`. An object that several modules hold is named after the first."""

ITEMS = ""
"""The name in a setting of a module that is a dict itself, whose keys lead to the integer."""

OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
"""The attributes that every module has."""


def mark_settings(model: nn.Module, marked: Callable[[int, Setting], int]) -> None:
    """Replace the integers in the attributes of a model and its submodules by marked ones. Changes `model`.

    Modules of torch are left out: the rewrite knows their attributes. The containers of `model` must be its own, as
    those of a copy are that `copy_module` has made.

    marked: called with the value of a setting and the setting; returns the marked integer.
    """
    seen: dict[int, Any] = {}
    for path, part in _modules_with_settings(model):
        for name, value in part.__dict__.items():
            if name not in OF_EVERY_MODULE:
                part.__dict__[name] = _marked(value, (path, name, ()), marked, seen)
        for name, value in _of_class(part):
            part.__dict__[name] = marked(value, (path, name, ()))
        for name in slots_of(type(part)):
            if hasattr(part, name):
                object.__setattr__(part, name, _marked(getattr(part, name), (path, name, ()), marked, seen))
        if isinstance(part, dict) and len(part) <= MOST_PARTS:
            for key, value in list(dict.items(part)):
                dict.__setitem__(part, key, _marked(value, (path, ITEMS, (key,)), marked, seen))


def _of_class(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The integers that forward of a module reads from its class: `width = 64` in the body of a `class` statement.

    A new value is written into the module, and the class stays as it is.
    """
    names = names_read_by(module) if any(_integers_of(kind) for kind in type(module).__mro__) else ()
    for name in names:
        value = inspect.getattr_static(type(module), name, None)
        if type(value) is int and value > 1 and name not in module.__dict__:
            yield name, value


def _integers_of(kind: type) -> bool:
    """True for a class of the user's with an integer in its body."""
    if kind.__module__.partition(".")[0] in ("torch", "builtins"):
        return False
    return any(type(value) is int and value > 1 for value in vars(kind).values())


def _modules_with_settings(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, part in model.named_modules():
        if not (
            type(part).__module__.startswith("torch.") or isinstance(part, (fx.GraphModule, nn.MultiheadAttention))
        ):
            yield path, part


def _marked(value: Any, setting: Setting, marked: Callable[[int, Setting], int], seen: dict[int, Any]) -> Any:
    """A value with marked integers. A tuple is replaced, any other container is changed.

    seen: the containers that are done already, by id. They are kept, so that no id is used twice.
    """
    if type(value) is int:
        return marked(value, setting) if value > 1 else value
    if id(value) in seen or has_many_parts(value) or len(setting[2]) >= MOST_STEPS or not is_container(value):
        return value
    found = parts(value)
    if len(found) > MOST_PARTS:
        return value
    if not isinstance(value, tuple):  # one tuple in two attributes is two settings, one list is one
        seen[id(value)] = value
    path, name, keys = setting
    new = {key: _marked(item, (path, name, (*keys, key)), marked, seen) for key, item in found.items()}
    return value if all(new[key] is found[key] for key in found) else with_parts(value, new)


def read_setting(model: nn.Module, setting: Setting) -> int:
    """The value of a setting in a model."""
    path, name, keys = setting
    module: Any = model.get_submodule(path)
    value: Any = dict(dict.items(module)) if name == ITEMS else getattr(module, name)
    for key in keys:
        value = parts(value)[key]
    return int(value)


def changed_setting(model: nn.Module, before: Mapping[Setting, int]) -> str:
    """A sentence about a setting whose value is another one than before; "" if there is none."""
    for setting, value in before.items():
        try:
            now: object = read_setting(model, setting)
        except (AttributeError, LookupError, TypeError, ValueError):
            now = "missing"
        if now != value:
            return f"{name_of(setting)} is {now}, it was {value}"
    return ""


def write_setting(model: nn.Module, setting: Setting, value: int) -> None:
    """Give a setting of a model a new value. A tuple is replaced by a new one, any other container changes."""
    path, name, keys = setting
    if read_setting(model, setting) == value:
        return
    module: Any = model.get_submodule(path)
    if name == ITEMS:
        item = module[keys[0]]
        dict.__setitem__(module, keys[0], with_part(item, keys[1:], value) if keys[1:] else value)
    else:
        set_attribute(module, name, with_part(getattr(module, name), keys, value) if keys else value)


def set_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Give an attribute of a module another value; also where its class lets it be written once, or not at all.

    Its class may recompute other attributes where one is set, so that it is asked first. Raises `RewriteError` if it
    refuses, and the attribute does not stand in the module's `__dict__`.
    """
    try:
        setattr(module, name, value)
    except Exception as error:  # of a `__setattr__` or a property of the user's
        if name not in module.__dict__:
            raise RewriteError(
                f'the attribute "{name}" of a {type(module).__name__} cannot be set to {value!r}',
                node="forward",
                why=text_of(error, lines=1),
                do="give its property a setter, or let its `__setattr__` take another number",
            ) from error
        module.__dict__[name] = value


def name_of(setting: Setting) -> str:
    """The name of a setting for a reader: "blocks.0.attn.num_heads", "sizes[1]", "split.axes['heads']"."""
    path, name, keys = setting
    return setting_name(f"{path}.{name}".strip(".") or "model", keys)


def setting_name(name: str, keys: tuple[Any, ...]) -> str:
    """The name of what stands in an attribute under some keys, as it stands in code: `axes['heads']`."""
    return name + "".join(map(key_text, keys))
