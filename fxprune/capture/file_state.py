"""State that forward may leave behind in the files of a model: in function caches, global variables, containers.

The files are those that define the classes of the modules, and those that they take functions and classes from. No
attribute of an object in them is read unless its type is known: an object that stands for a package which is not
installed may raise at every attribute.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from fxprune.capture.containers import is_container, parts
from fxprune.capture.held_objects import CACHED_FUNCTION
from fxprune.capture.hook_parts import parts_of_hooks

_WITHOUT_TENSORS = {
    *("PIL", "huggingface_hub", "matplotlib", "packaging", "tqdm", "typing_extensions", "yaml"),
    *("_pytest", "hypothesis", "pytest"),
}
"""Packages that files of models import often, and whose files keep nothing of a forward: they know no tensors."""
_OTHERS = {*sys.stdlib_module_names, *_WITHOUT_TENSORS, "torch", "numpy", "fxprune"} - {"__main__"}
_STEPS = 2
"""The number of imports that are followed: a file takes a function from a second one, which calls one of a third."""
_METHODS = (staticmethod, classmethod, types.MethodType)
_CONTAINERS = (dict, list, set, defaultdict, OrderedDict, deque)
_MOST_ITEMS = 10_000
"""A container with more items than this is data, and no cache."""


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
        own = tuple(kind for kind in kinds if kind.__module__.partition(".")[0] not in _OTHERS)
        hooks = {id(value): _Held(value) for value in parts_of_hooks(model)}
        names, found = {kind.__module__ for kind in own}, dict[str, types.ModuleType]()
        names |= {str(each.value.__module__) for each in hooks.values() if type(each.value) is types.FunctionType}
        for step in range(_STEPS + 1):
            new = {name for name in names if name not in found and name.partition(".")[0] not in _OTHERS}
            files = {name: sys.modules[name] for name in sorted(new) if type(sys.modules.get(name)) is types.ModuleType}
            found |= files
            names = {name for file in files.values() for name in _taken_from(file)} if step < _STEPS else set()
        return cls(tuple(found.values()), own, tuple(hooks.values()))

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


def places_of_cached_functions(code: Code) -> list[CachePlace]:
    """The places of the functions with a cache: global variables, attributes of classes, and closures."""
    seen: set[int] = set()
    return [place for value, put in code.values() for place in _in_value(value, put, seen)]


def _in_value(value: Any, put: Callable[[Any], None], seen: set[int]) -> Iterator[CachePlace]:
    """The places of functions with a cache in a value: itself, and the variables that it closes over.

    put: puts something else in the place of the value. seen: the ids of the functions whose closure was looked at.
    """
    kind = type(value)
    function = value.__func__ if kind in _METHODS else value
    if _has_cache(function):
        wrap = kind if kind in (staticmethod, classmethod) else None
        yield CachePlace(
            function, put if wrap is None else lambda other: put(other if type(other) is kind else wrap(other))
        )
    inner = getattr(function, "__wrapped__", None) if _has_cache(function) else function
    if type(inner) is types.FunctionType and id(inner) not in seen:
        seen.add(id(inner))
        for cell in inner.__closure__ or ():
            yield from _in_value(_cell_value(cell), functools.partial(setattr, cell, "cell_contents"), seen)


def _has_cache(value: Any) -> bool:
    """True for what `functools.lru_cache` makes, and for what is made like it. Other caches have these names too."""
    kind = type(value)
    return kind is CACHED_FUNCTION or (
        kind is types.FunctionType and {"cache_clear", "cache_info", "__wrapped__"} <= vars(value).keys()
    )


def _cell_value(cell: Any) -> Any:
    """The value of a variable in a closure; None if it has none yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


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


_NOTHING = object()


# -- variables and containers -----------------------------------------------------------------------------


class Kept:
    """The global variables of some code, and the containers among them and in classes and functions, as they were.

    `restore` puts back what has changed since this object was made.
    """

    def __init__(self, code: Code) -> None:
        self.code = code
        tables = [*map(vars, self.code.files), *self.code.objects]
        self._variables = [(table, dict(table)) for table in tables]
        self._containers = [(found, found.copy()) for found in self._found()]
        self._of_hooks = {id(found) for value in self._values_of_hooks() for found in _containers_in(value, set())}
        self._tables = [(found, before) for found, before in self._containers if isinstance(found, dict)]
        self._tables_alone = [table for table, _ in self._tables]
        self._sizes = [len(before) for _, before in self._tables]

    @property
    def items(self) -> list[list[int]]:
        """The ids of the items that the containers have now."""
        return [list(map(id, one.values() if isinstance(one, dict) else one)) for one, _ in self._containers]

    def restore(self) -> None:
        """Put back what was there, where a tensor or a marked integer has come in. Anything else is not ours.

        Real tensors in a list stay too: caches are tables and variables, and a list may collect the results of another
        thread. What a hook puts into a list is taken out unless other threads run now.
        """
        of_hooks = set() if _other_threads() else self._of_hooks
        for variables, before in self._variables:
            for name, value in list(variables.items()):
                if before.get(name, _NOTHING) is not value and _may_be_ours(value):
                    if name in before:
                        variables[name] = before[name]
                    else:
                        del variables[name]
        for container, before in self._containers:
            collects = isinstance(container, (list, deque))
            stays = collects and id(container) not in of_hooks
            if not _same(container, before) and _may_be_ours(container, FakeTensor if stays else torch.Tensor):
                container.clear()
                container.extend(before) if collects else container.update(before)

    def forget_marks(self) -> None:
        """Take out what a module has put into a table under marked integers, if it holds marked integers itself.

        Such a table is a cache, in which the next module with the same numbers would find those of this one.
        """
        if list(map(len, self._tables_alone)) == self._sizes:
            return  # this is called behind every module
        for table, before in self._tables:
            if len(table) != len(before):
                for key in [key for key, value in table.items() if _may_be_ours(key, ()) and _may_be_ours(value, ())]:
                    del table[key]

    def _found(self) -> Iterator[Any]:
        """The containers among the global variables, in classes and functions, and in other containers."""
        seen: set[int] = set()
        for value, _ in self.code.values():
            yield from _containers_in(value, seen)
        for value in self._values_of_hooks():
            yield from _containers_in(value, seen)

    def _values_of_hooks(self) -> Iterator[Any]:
        """The hooks, the attributes of the objects that they are methods of, the global variables that they name."""
        yield from self.code.objects
        for function in (each.value for each in self.code.hooks):
            yield function
            if type(function) is types.FunctionType:
                names = function.__code__.co_names
                yield from [function.__globals__[name] for name in names if name in function.__globals__]


def _other_threads() -> bool:
    """True if other threads run that may run models. The monitor of progress bars does not."""
    own = threading.current_thread()
    return any(thread is not own and thread.name != "tqdm_monitor" for thread in threading.enumerate())


def _containers_in(value: Any, seen: set[int]) -> Iterator[Any]:
    kind = type(value)
    function = value.__func__ if kind in _METHODS else value
    if (kind not in _CONTAINERS and type(function) is not types.FunctionType) or id(function) in seen:
        return
    seen.add(id(function))
    if kind not in _CONTAINERS:
        own = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values())
        for item in (*own, *map(_cell_value, function.__closure__ or ())):
            yield from _containers_in(item, seen)
    elif len(value) <= _MOST_ITEMS:
        yield value
        for item in list(value.values() if isinstance(value, dict) else value):
            if type(item) in _CONTAINERS:
                yield from _containers_in(item, seen)


def _may_be_ours(value: Any, tensors: Any = torch.Tensor, depth: int = 4) -> bool:
    """True if a value is or holds a tensor, or an integer of a class of its own as marked integers are."""
    kind = type(value)
    if issubclass(kind, tensors) or (issubclass(kind, int) and kind not in (int, bool)):
        return True
    if not depth or kind in (int, float, bool, str, type(None)) or not is_container(value):
        return kind in (set, frozenset) and any(_may_be_ours(item, tensors, 0) for item in value)
    return any(_may_be_ours(item, tensors, depth - 1) for pair in parts(value).items() for item in pair)


def _same(container: Any, before: Any) -> bool:
    """True if two containers of a type hold the same objects in the same order."""
    if len(container) != len(before):
        return False
    if isinstance(container, set):
        return bool(container == before)
    if isinstance(container, dict):
        pairs = zip(container.items(), before.items(), strict=True)
        return all(a is c and b is d for (a, b), (c, d) in pairs)
    return all(map(lambda a, b: a is b, container, before))


# -- both -------------------------------------------------------------------------------------------------


class FileState:
    """The state of some code: its functions with a cache, their places, its variables and containers, generators.

    To look for these takes long where a model has hundreds of files, so one object serves several runs in turn, as long
    as it is `current`.
    """

    def __init__(self, code: Code) -> None:
        self.code = code
        self.places = places_of_cached_functions(code)
        self.functions = list({id(place.function): place.function for place in self.places}.values())
        self.kept = Kept(code)
        self.generators = [value for value, _ in code.values() if type(value) is torch.Generator]
        self._objects, self._items = self._now(), self.kept.items

    def current(self) -> bool:
        """True if every variable, and every item of a container, is the same object."""
        return self._objects == self._now() and self._items == self.kept.items

    def _now(self) -> list[list[int]]:
        """The ids of the global variables, and of the attributes of classes."""
        tables = (*map(vars, (*self.code.files, *self.code.classes_within)), *self.code.objects)
        return [list(map(id, table.values())) for table in tables]
