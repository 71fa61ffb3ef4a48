"""Places where code keeps values from one run to the next, beside the attributes of a model, and what was there.

That is what stands in variables, containers, attributes of functions, classes and objects, and closures. Objects are
looked into if a class of Python code made them that is the user's. No attribute is read through a method of its class:
an object that stands for a package which is not installed may raise at every attribute.
"""

from __future__ import annotations

import enum
import functools
import operator
import sys
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from fxprune.capture.code import content_of
from fxprune.capture.containers import MADE_BY_CODE, MOST_PARTS, attributes_of, is_container, parts, slots_of
from fxprune.capture.held_objects import CACHED_FUNCTION
from fxprune.capture.library_state import is_holder
from fxprune.capture.same_values import SameValues

_CONTAINERS: tuple[Any, ...] = (OrderedDict, dict, list, set, deque)
_MOST_ITEMS = 10_000
"""A container with more items than this is data, and no cache."""
_MOST_OBJECTS = 3_000
"""The most objects that are looked into, those first that are the fewest steps away."""
_PLAIN = frozenset({int, float, bool, str, bytes, type(None), torch.Tensor, nn.Parameter, torch.dtype, torch.device})
_WITHOUT_TENSORS = {
    *("PIL", "huggingface_hub", "matplotlib", "packaging", "tqdm", "typing_extensions", "yaml"),
    *("_pytest", "hypothesis", "pytest"),
}
"""Packages that files of models import often, and that keep nothing of a forward: they know no tensors."""
NOT_THE_USERS = {*sys.stdlib_module_names, *_WITHOUT_TENSORS, "torch", "numpy", "fxprune"} - {"__main__"}
"""The names of packages whose files and objects are not looked into."""
_NO_OBJECTS = (type, types.ModuleType, torch.Tensor, enum.Enum, BaseException)
_OF_MODULES = set(nn.Module().__dict__) - {"_buffers", "_modules"}
"""The attributes that every module has, and that keep nothing of a run."""


class Kept:
    """The variables and containers that some code keeps values in, as they were.

    `restore` puts back what has changed since this object was made.

    tables: the dicts of variables, and the classes, whose entries are put back one by one. values: those from where to
    look for containers, functions and objects. of_hooks: values whose lists are emptied too. leave: the ids of objects
    that are not looked into. caches: the functions with a cache that were found.
    """

    def __init__(
        self, tables: Iterable[Any], values: Iterable[Any], *, of_hooks: Iterable[Any] = (), leave: Iterable[int] = ()
    ) -> None:
        found = list(_keepers(values, set(leave)))
        self.caches = [one for one in found if has_cache(one)]
        self._containers = [(one, _copied(one)) for one in found if issubclass(type(one), _CONTAINERS)]
        others = [one for one in found if type(one) is not CACHED_FUNCTION and type(one) not in _CONTAINERS]
        self._variables = [_Variables(owner) for owner in (*tables, *others)]
        self._of_hooks = {id(one) for one in _keepers(of_hooks, set()) if issubclass(type(one), _CONTAINERS)}
        self._tables = [(one, before) for one, before in self._containers if isinstance(one, dict)]
        self._tables_alone = [table for table, _ in self._tables]
        self._sizes = [len(before) for _, before in self._tables]
        self._same = self._values_now()

    def _values_now(self) -> SameValues:
        """The values of all variables and containers as they are now."""
        sequences = [one for one, _ in self._containers if not isinstance(one, dict)]
        tables = [one.table for one in self._variables if one.table is not None]
        cells = [one.owner for one in self._variables if type(one.owner) is types.CellType]
        others = [one for one in self._variables if one.table is None and type(one.owner) is not types.CellType]
        return SameValues(
            (*self._tables_alone, *tables),
            sequences,
            cells,
            [functools.partial(_Variables.values, one) for one in others],
        )

    def unchanged(self) -> bool:
        """True if every variable, and every item of a container, is the same object."""
        return self._same.unchanged()

    def restore(self) -> None:
        """Put back what was there, where a tensor or a marked integer has come in. Anything else is not ours.

        Real tensors in a list stay too: caches are tables and variables, and a list may collect the results of another
        thread. What a hook puts into a list is taken out unless other threads run now.
        """
        if self._same.unchanged():
            return
        of_hooks = set() if _other_threads() else self._of_hooks
        for variables in self._variables:
            variables.restore()
        for container, before in self._containers:
            base: Any = _base(container)
            collects = base in (list, deque)
            stays = collects and id(container) not in of_hooks
            if not _same(container, before) and _may_be_ours(container, FakeTensor if stays else torch.Tensor):
                base.clear(container)
                base.extend(container, before) if collects else base.update(container, before)

    def forget_marks(self) -> None:
        """Take out what a module has put into a table under marked integers, if it holds marked integers itself.

        Such a table is a cache, in which the next module with the same numbers would find those of this one.
        """
        if list(map(dict.__len__, self._tables_alone)) == self._sizes:
            return  # this is called behind every module
        for table, before in self._tables:
            if dict.__len__(table) != len(before):
                items = list(dict.items(table))
                for key in [key for key, value in items if _may_be_ours(key, ()) and _may_be_ours(value, ())]:
                    _base(table).__delitem__(table, key)


@dataclass
class _Variables:
    """The variables of an owner by name, as they were: a dict of them, a class, a function, an object, a closure's.

    A module that is held is not ours to put back: its real tensors may change in place, and only fake ones go.
    """

    owner: Any
    before: dict[str, Any] = field(init=False)
    table: Mapping[str, Any] | None = field(init=False)  # the table of the variables, if they are in one

    def __post_init__(self) -> None:
        kind = type(self.owner)
        self.table = None
        if kind is dict:
            self.table = self.owner
        elif kind is types.FunctionType or issubclass(kind, type):
            self.table = vars(self.owner)
        elif kind is not types.CellType and kind.__dictoffset__ and not any(slots_of(kind)):
            self.table = object.__getattribute__(self.owner, "__dict__")
        self.before = dict(self.now())

    def now(self) -> Mapping[str, Any]:
        """The variables now."""
        if self.table is not None:
            return self.table
        if type(self.owner) is types.CellType:
            return {"cell_contents": content_of(self.owner)}
        return attributes_of(self.owner)

    def values(self) -> Iterable[Any]:
        """The values of the variables now."""
        return self.now().values()

    def restore(self) -> None:
        """Put back what was there, where a tensor or a marked integer has come in."""
        now = self.now()
        if len(now) == len(self.before) and all(map(operator.is_, now.values(), self.before.values())):
            return
        tensors = FakeTensor if issubclass(type(self.owner), nn.Module) else torch.Tensor
        for name, value in list(now.items()):
            if self.before.get(name, _NOTHING) is not value and _may_be_ours(value, tensors):
                self._put(name, self.before.get(name, _NOTHING))

    def _put(self, name: str, value: Any) -> None:
        kind = type(self.owner)
        if kind is dict:
            self.owner.pop(name) if value is _NOTHING else self.owner.__setitem__(name, value)
            return
        base: Any = type if issubclass(kind, type) else object
        base.__delattr__(self.owner, name) if value is _NOTHING else base.__setattr__(self.owner, name, value)


_NOTHING = object()


def _other_threads() -> bool:
    """True if other threads run that may run models. The monitor of progress bars does not."""
    own = threading.current_thread()
    return any(thread is not own and thread.name != "tqdm_monitor" for thread in threading.enumerate())


# -- where values are kept --------------------------------------------------------------------------------


def held_values(model: nn.Module) -> Iterator[Any]:
    """The values of the attributes of modules that may keep something: no numbers, tensors, modules, empty tables."""
    for module in model.modules():
        for name, value in module.__dict__.items():
            if name not in _OF_MODULES and name not in ("_buffers", "_modules") and type(value) not in _PLAIN:
                yield value


def _keepers(values: Iterable[Any], seen: set[int]) -> Iterator[Any]:
    """The containers, functions, variables of closures and objects among values and in what they hold."""
    waiting, objects = deque(values), 0
    while waiting:
        one = waiting.popleft()
        kind = type(one)
        if kind in _PLAIN or id(one) in seen:
            continue
        seen.add(id(one))
        if issubclass(kind, _CONTAINERS):
            items = _looked_into(one)
            if items is None:
                continue
            yield one
            waiting.extend([item for item in items if type(item) not in _PLAIN])
        elif kind is tuple:
            waiting.extend(one)
        elif kind is types.CellType:
            yield one
            waiting.append(content_of(one))
        elif kind in _INNER:
            yield from (one,) if kind is CACHED_FUNCTION else ()
            waiting.extend(_INNER[kind](one))
        if kind is types.FunctionType:
            yield one
            own = (*(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values(), *vars(one).values())
            waiting.extend((*own, *(one.__closure__ or ())))
        elif objects < _MOST_OBJECTS and _is_object(kind):
            objects += 1
            if not issubclass(kind, _CONTAINERS):
                yield one
            found = attributes_of(one)
            waiting.extend([v for name, v in found.items() if type(v) not in _PLAIN and name not in _OF_MODULES])


_INNER: Mapping[type, Any] = {
    staticmethod: lambda one: (one.__func__,),
    classmethod: lambda one: (one.__func__,),
    property: lambda one: (one.fget,),
    types.MethodType: lambda one: (one.__func__, one.__self__),
    functools.partial: lambda one: (one.func, *one.args, *one.keywords.values()),
    CACHED_FUNCTION: lambda one: (one.__wrapped__,),
}
"""Type of a value around functions -> what it holds."""


def _is_object(kind: type) -> bool:
    """True if the instances of a class may keep values in their attributes."""
    if kind is types.SimpleNamespace or is_holder(kind):
        return True
    users = kind.__flags__ & MADE_BY_CODE and str(kind.__module__).partition(".")[0] not in NOT_THE_USERS
    return bool(users) and not issubclass(kind, _NO_OBJECTS)


def has_cache(value: Any) -> bool:
    """True for what `functools.lru_cache` makes, and for what is made like it. Other caches have these names too."""
    kind = type(value)
    return kind is CACHED_FUNCTION or (
        kind is types.FunctionType and {"cache_clear", "cache_info", "__wrapped__"} <= vars(value).keys()
    )


# -- containers -------------------------------------------------------------------------------------------


def _base(container: Any) -> Any:
    """The class of Python that a container is of, whose methods do what they say."""
    kind = type(container)
    return kind if kind in _CONTAINERS else next(base for base in _CONTAINERS if issubclass(kind, base))


def _items(container: Any) -> list[Any]:
    """The items of a container, the values of a dict."""
    base = _base(container)
    return list(base.values(container) if issubclass(base, dict) else base.__iter__(container))


def _copied(container: Any) -> Any:
    """A container of a class of Python with the same items."""
    base = _base(container)
    return dict(base.items(container)) if issubclass(base, dict) else base(base.__iter__(container))


def _may_be_ours(value: Any, tensors: Any = torch.Tensor, depth: int = 4) -> bool:
    """True if a value is or holds a tensor, or an integer of a class of its own as marked integers are."""
    kind = type(value)
    if issubclass(kind, tensors) or (issubclass(kind, int) and kind not in (int, bool)):
        return True
    if not depth or kind in (int, float, bool, str, type(None)) or not is_container(value):
        return kind in (set, frozenset) and any(_may_be_ours(item, tensors, 0) for item in value)
    keys = dict.keys(value) if issubclass(kind, dict) else ()
    return any(_may_be_ours(item, tensors, depth - 1) for item in (*keys, *parts(value).values()))


def _looked_into(container: Any) -> list[Any] | None:
    """The items of a container; None if it holds data, as a vocabulary does."""
    count = _base(container).__len__(container)
    items = _items(container) if count <= _MOST_ITEMS else None
    return None if items is None or (count > MOST_PARTS and set(map(type, items)) == {str}) else items


def _same(container: Any, before: Any) -> bool:
    """True if a container holds the same objects in the same order as its copy."""
    base = _base(container)
    if base.__len__(container) != len(before):
        return False
    if base is set:
        return bool(base.__eq__(container, before))
    if issubclass(base, dict):
        same = all(map(operator.is_, base.values(container), before.values()))
        return same and all(map(operator.is_, base.keys(container), before))
    return all(map(operator.is_, base.__iter__(container), before))
