"""State that forward may leave behind in the files of a model: in function caches, global variables, containers.

The files are those that define the classes of the modules, and those that they take functions and classes from. No
attribute of an object in them is read unless its type is known: an object that stands for a package which is not
installed may raise at every attribute.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.capture.code import content_of
from fxprune.capture.held_objects import CACHED_FUNCTION
from fxprune.capture.hook_parts import parts_of_hooks
from fxprune.capture.kept_values import NOT_THE_USERS, Kept, has_cache

_STEPS = 2
"""The number of imports that are followed: a file takes a function from a second one, which calls one of a third."""
_METHODS = (staticmethod, classmethod, types.MethodType)


@dataclass(frozen=True)
class Code:
    """The code that runs when a model runs: the files, and the classes of its modules, which may stand in a function.

    files: the files that define the classes and hooks, and those that they take functions, classes and modules from.
    hooks: the functions of its hooks, and the objects that they are methods of.
    """

    files: tuple[types.ModuleType, ...]
    classes: tuple[type, ...]
    hooks: tuple[_Held, ...] = ()

    @property
    def classes_within(self) -> Iterator[type]:
        """The classes of the modules, then those that the files define, each once."""
        found = dict.fromkeys(self.classes)
        for file in self.files:
            for value in list(vars(file).values()):
                if issubclass(type(value), type) and value.__module__ == file.__name__:
                    found[value] = None
        return iter(found)

    @classmethod
    def of(cls, model: nn.Module) -> Code:
        """The code of a model."""
        kinds = {base: None for kind in dict.fromkeys(map(type, model.modules())) for base in kind.__mro__}
        own = tuple(kind for kind in kinds if kind.__module__.partition(".")[0] not in NOT_THE_USERS)
        hooks = {id(value): _Held(value) for value in parts_of_hooks(model)}
        names, found = {kind.__module__ for kind in own}, dict[str, types.ModuleType]()
        names |= {str(each.value.__module__) for each in hooks.values() if type(each.value) is types.FunctionType}
        for step in range(_STEPS + 1):
            new = {name for name in names if name not in found and name.partition(".")[0] not in NOT_THE_USERS}
            files = {name: sys.modules[name] for name in sorted(new) if type(sys.modules.get(name)) is types.ModuleType}
            found |= files
            names = {name for file in files.values() for name in _taken_from(file)} if step < _STEPS else set()
        return cls(tuple(found.values()), own, tuple(hooks.values()))

    @property
    def parts(self) -> tuple[Code, Code]:
        """The code in installed packages, and the rest, which is the user's own."""
        files = [tuple(file for file in self.files if _is_installed(file.__name__) == i) for i in (True, False)]
        classes = [tuple(one for one in self.classes if _is_installed(one.__module__) == i) for i in (True, False)]
        return Code(files[0], classes[0]), Code(files[1], classes[1], self.hooks)

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The attributes of the objects whose methods are hooks, and that are no modules."""
        values = (each.value for each in self.hooks if type(each.value) is not types.FunctionType)
        return [vars(value) for value in values if type(getattr(value, "__dict__", None)) is dict]

    def values(self) -> Iterator[tuple[Any, Callable[[Any], None]]]:
        """Every global variable and every attribute of a class, with a function that puts something else there."""
        for file in self.files:
            for name, value in list(vars(file).items()):
                if not issubclass(type(value), type) and not name.startswith("__"):
                    yield value, functools.partial(vars(file).__setitem__, name)
        for kind in self.classes_within:
            for name, value in list(vars(kind).items()):
                if name not in ("__dict__", "__weakref__", "__doc__", "__module__"):
                    yield value, functools.partial(setattr, kind, name)


@dataclass(frozen=True, eq=False)
class _Held:
    """A value that is equal to itself alone, whatever its class says."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _is_installed(name: str) -> bool:
    """True if a file of this name belongs to an installed package."""
    path = getattr(sys.modules.get(name), "__file__", None)
    return isinstance(path, str) and _is_in_packages(path)


@functools.lru_cache(maxsize=4096)
def _is_in_packages(path: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(path).parts)


def _taken_from(file: types.ModuleType) -> Iterator[str]:
    """The names of the files of the functions, classes and modules among the global variables of a file."""
    for value in list(vars(file).values()):
        kind = type(value)
        if kind is types.ModuleType:
            yield value.__name__
        elif kind is types.FunctionType or kind is CACHED_FUNCTION or issubclass(kind, type):
            yield str(value.__module__)


# -- functions with a cache -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CachePlace:
    """A place that holds a function with a cache: a global variable, an attribute of a class, a variable in a closure.

    function: the function. put: puts something else there.
    """

    function: Any
    put: Callable[[Any], None]

    def replace(self, other: Any) -> Callable[[], None]:
        """Put another function there. Returns a function that puts the first one back."""
        self.put(other)
        return lambda: self.put(self.function)


def places_of_cached_functions(values: Iterable[tuple[Any, Callable[[Any], None]]]) -> list[CachePlace]:
    """The places of functions with a cache among values of `Code.values`, and in the closures of these."""
    seen: set[int] = set()
    return [place for value, put in values for place in _in_value(value, put, seen)]


def _in_value(value: Any, put: Callable[[Any], None], seen: set[int]) -> Iterator[CachePlace]:
    """The places of functions with a cache in a value: itself, and the variables that it closes over.

    put: puts something else in the place of the value. seen: the ids of the functions whose closure was looked at.
    """
    kind = type(value)
    function = value.__func__ if kind in _METHODS else value
    if has_cache(function):
        wrap = kind if kind in (staticmethod, classmethod) else None
        yield CachePlace(
            function, put if wrap is None else lambda other: put(other if type(other) is kind else wrap(other))
        )
    inner = getattr(function, "__wrapped__", None) if has_cache(function) else function
    if type(inner) is types.FunctionType and id(inner) not in seen:
        seen.add(id(inner))
        for cell in inner.__closure__ or ():
            yield from _in_value(content_of(cell), functools.partial(setattr, cell, "cell_contents"), seen)


def uncached(function: Any) -> Any:
    """The function that a function with a cache wraps, with the other methods of the cache."""
    inner = getattr(function, "__wrapped__", None)
    if inner is None:
        return function

    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    for name in ("cache_clear", "cache_info", "cache_parameters"):
        if hasattr(function, name):
            setattr(call, name, getattr(function, name))
    return call


# -- both -------------------------------------------------------------------------------------------------


class FileState:
    """The state of some code: its functions with a cache, their places, its variables and containers, generators.

    To look for these takes long where a model has hundreds of files, so one object serves several runs in turn, as long
    as it is `current`.
    """

    def __init__(self, code: Code) -> None:
        self.code = code
        values = list(code.values())
        self.places = places_of_cached_functions(values)
        self.kept = Kept(
            [*map(vars, code.files), *code.objects, *code.classes_within],
            [*(value for value, _ in values), *_values_of_hooks(code)],
            of_hooks=_values_of_hooks(code),
        )
        caches = [*(place.function for place in self.places), *self.kept.caches]
        self.functions = list({id(function): function for function in caches}.values())
        self.generators = [value for value, _ in values if type(value) is torch.Generator]

    def current(self) -> bool:
        """True if every variable, and every item of a container, is the same object."""
        return self.kept.unchanged()


def _values_of_hooks(code: Code) -> list[Any]:
    """The hooks, the attributes of the objects that they are methods of, the global variables that they name."""
    found: list[Any] = list(code.objects)
    for function in (each.value for each in code.hooks):
        found.append(function)
        if type(function) is types.FunctionType:
            names = function.__code__.co_names
            found += [function.__globals__[name] for name in names if name in function.__globals__]
    return found
