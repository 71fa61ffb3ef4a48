"""The objects that Python functions refer to: in closures, defaults and globals, which no copy of a model changes.

A hook bound to a module of the model is bound to the counterpart in the small one, since the model is copied with
everything in it. A function is shared by copies, and what it closes over is too.
"""

from __future__ import annotations

import dis
import functools
import logging
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _WrappedHook

from fxprune.capture.code import content_of, functions_run_by, is_torch
from fxprune.capture.containers import attributes_of, key_text, parts
from fxprune.capture.held_objects import parts_held_by
from fxprune.capture.tensors import Tensors
from fxprune.capture.weak_references import is_weak, referents_of

HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_state_dict_hooks": "state_dict hook",
    "_state_dict_pre_hooks": "state_dict pre-hook",
    "_load_state_dict_pre_hooks": "load_state_dict pre-hook",
    "_load_state_dict_post_hooks": "load_state_dict hook",
}
"""Attribute of a module -> the name of the hooks in it."""

_CONTENTS = ("_parameters", "_buffers", "_modules")
_PLAIN = frozenset((bool, int, float, str, type(None), torch.dtype, torch.device))
_MAPPINGS = (types.MappingProxyType, weakref.WeakValueDictionary, weakref.WeakKeyDictionary)
_DEPTH = 8
_NOT_LOOKED_INTO = (type, types.ModuleType, types.FunctionType, logging.Logger)
_MOST = 3_000
"""The most values that are looked at in a variable."""

_LOADS = ("LOAD_GLOBAL", "LOAD_NAME")


def references_to_original(known: Mapping[int, str], small: nn.Module) -> list[str]:
    """Sentences about hooks and attributes of a small model, and of its parameters, that still refer to the original.

    They run as they are: a hook that closes over a layer of the original reads that layer.

    known: the names of the original's parts, as `names_in` gives them.
    """
    found = []
    for path, module in small.named_modules():
        for name, value in _attributes_and_items(module):
            if name in _CONTENTS or type(value) in _PLAIN or (type(value) in (dict, OrderedDict) and not value):
                continue
            for part in value.values() if name in HOOKS else [value]:
                target = next((known[id(v)] for v in reachable(part) if id(v) in known), None)
                if target is not None:
                    kind = HOOKS.get(name) or f'attribute "{name}"'
                    where = f'"{path}"' if path else "the model"
                    found.append(f"the {kind} of {where} ({place_of(part)}) refers to {target}")
        for name, parameter in module._parameters.items():
            for attribute, value in ({} if parameter is None else parameter.__dict__).items():
                target = next((known[id(v)] for v in reachable(value) if id(v) in known), None)
                if target is not None:
                    where = f"{path}.{name}" if path else name
                    found.append(f'the attribute "{attribute}" of the parameter "{where}" refers to {target}')
    return found + references_of_classes(known, small)


def references_of_classes(known: Mapping[int, str], small: nn.Module) -> list[str]:
    """The sentences of `references_to_original` about the classes of modules, and the variables that forward reads."""
    return [*_tables_of_classes(known, small), *_variables_of_forward(known, small)]


def _attributes_and_items(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes of a module, those in slots too, and the items of one that is a dict or a list."""
    yield from attributes_of(module).items()
    if isinstance(module, (dict, list)):
        yield from ((key_text(key), value) for key, value in parts(module).items())


def _tables_of_classes(known: Mapping[int, str], small: nn.Module) -> Iterator[str]:
    """Sentences about tables in the bodies of classes that have modules of the original, and not those of a copy."""
    kinds = {kind for module in small.modules() for kind in type(module).__mro__ if not is_torch(kind.__module__)}
    for kind in sorted(kinds, key=lambda kind: kind.__qualname__):
        for name, value in list(vars(kind).items()):
            held = referents_of(value) if is_weak(value) else parts_held_by(value) if isinstance(value, dict) else ()
            target = next((known[id(part)] for part in held if id(part) in known), None)
            if target is not None:
                yield f'"{name}" of the class {kind.__name__} has {target} in it, and not its copy in the small model'


def _variables_of_forward(known: Mapping[int, str], small: nn.Module) -> Iterator[str]:
    """Sentences about globals and closures that forward reads, which have parts of the original and not of a copy."""
    told: set[tuple[str, int]] = set()
    for kind, module in {type(module): module for module in small.modules()}.items():
        if is_torch(kind.__module__):
            continue
        for function in functions_run_by(module):
            for name, value in closed_over(function).items():
                if (name, id(value)) in told or isinstance(value, _NOT_LOOKED_INTO):
                    continue
                told.add((name, id(value)))
                target = next((known[id(v)] for v in islice(reachable(value), _MOST) if id(v) in known), None)
                if target is not None:
                    where = f'the variable "{name}" outside of the model, which {place_of(function)} reads'
                    yield f"{where}, has {target} in it, and the small model uses that, not its own copy"


def names_in(model: nn.Module, tensors: Tensors) -> dict[int, str]:
    """Id of every module, parameter and buffer of the original -> what to call it in a sentence."""
    named: list[tuple[str, Any]] = [*model.named_modules(), *((found.name, found.tensor) for found in tensors.unique)]
    return {id(value): f'"{name}" of the original' if name else "the original" for name, value in reversed(named)}


def reachable(value: Any) -> Iterator[Any]:
    """Every value that `value` holds or refers to, itself included; modules and tensors are not looked into."""
    seen: set[int] = set()
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if depth < _DEPTH and not isinstance(one, (nn.Module, torch.Tensor, type, types.ModuleType)):
            waiting += [(part, depth + 1) for part in _parts(one) if type(part) not in _PLAIN]


def _parts(value: Any) -> list[Any]:
    if isinstance(value, types.FunctionType):
        return [*closed_over(value).values()]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if is_weak(value):
        return referents_of(value)
    if isinstance(value, _MAPPINGS):  # no others: one of a user's may read files
        return [*value.keys(), *value.values()]
    return [*parts_held_by(value), *getattr(value, "__dict__", {}).values()]


def closed_over(function: types.FunctionType) -> dict[str, Any]:
    """The values that a function has in its closure, its defaults and the globals that it reads."""
    found: dict[str, Any] = {}
    for name in _globals_read(function.__code__):
        if name in function.__globals__:
            found[name] = function.__globals__[name]
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if content_of(cell) is not cell:
            found[name] = content_of(cell)
    found.update({f"default {i}": value for i, value in enumerate(function.__defaults__ or ())})
    return found | (function.__kwdefaults__ or {})


def _globals_read(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in _LOADS:
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals_read(constant)


def place_of(function: Any) -> str:
    """The name of a function and the line where it is defined; for other objects the name of their class."""
    inner: dict[type, str] = {functools.partial: "func", types.MethodType: "__func__", _WrappedHook: "hook"}
    while type(function) in inner:
        function = getattr(function, inner[type(function)])
    if isinstance(function, types.FunctionType):
        code = function.__code__
        return f"{function.__name__}, {code.co_filename}:{code.co_firstlineno}"
    return type(function).__name__
