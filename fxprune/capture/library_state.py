"""Objects of the standard library and of numpy that hold values of the user, or have a state of their own.

A forward may keep something there between two calls, or draw numbers: each copy of a model has its own.
"""

from __future__ import annotations

import ast
import copy
import itertools
import queue
import threading
import warnings
from collections import ChainMap, UserDict, UserList
from collections.abc import Callable, Mapping
from typing import Any

from fxprune.capture.per_class import once_per_class

MOST_BYTES = 1 << 20
"""An array of numpy with more bytes than this is data: copies for runs share it, and it is put back after them."""

_HOLDERS = (UserDict, UserList, ChainMap, queue.Queue)
_WITH_STATE = {
    ("random", "Random"),
    ("builtins", "bytearray"),
    ("array", "array"),
    *(("_io", name) for name in ("BytesIO", "StringIO")),
    *(("itertools", name) for name in ("count", "_tee")),
    ("_queue", "SimpleQueue"),
    ("_thread", "_local"),
    *(("numpy.random._generator", "Generator"), ("numpy.random.mtrand", "RandomState")),
}
"""The classes of objects whose state a call of them changes, as the module and the name of each."""
_ITERATOR_MODULES = frozenset({"builtins", "itertools", "_collections"})
"""The modules of Python's own iterators. Most say of what they are made, and where they are; a generator does not."""
_LOCKS_OF_QUEUES = ("mutex", "not_empty", "not_full", "all_tasks_done")


@once_per_class
def is_holder(kind: type) -> bool:
    """True for a class of the standard library whose objects hold values of the user, and for one derived from it."""
    return issubclass(kind, _HOLDERS)


def without_locks(value: Any, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attributes of an object; without the locks of a queue, of which each queue has its own."""
    if not isinstance(value, queue.Queue):
        return attributes
    return {name: part for name, part in attributes.items() if name not in _LOCKS_OF_QUEUES}


def give_locks(value: Any) -> None:
    """Give a queue without locks new ones. Any other object stays as it is."""
    if isinstance(value, queue.Queue) and "mutex" not in value.__dict__:
        lock = threading.Lock()
        conditions = {name: threading.Condition(lock) for name in _LOCKS_OF_QUEUES[1:]}
        value.__dict__.update({"mutex": lock, **conditions})


@once_per_class
def has_state(kind: type) -> bool:
    """True for a class of generators of random numbers, counters, iterators, arrays and buffers of bytes."""
    return (kind.__module__, kind.__name__) in _WITH_STATE or is_iterator(kind) or is_array(kind)


@once_per_class
def is_iterator(kind: type) -> bool:
    """True for a class of Python's own iterators, but for those that `copy` copies with what they take from."""
    place = kind.__module__, kind.__name__
    return place[0] in _ITERATOR_MODULES and hasattr(kind, "__next__") and place not in _WITH_STATE


@once_per_class
def is_array(kind: type) -> bool:
    """True for the class of numpy's arrays."""
    return (kind.__module__, kind.__name__) == ("numpy", "ndarray")


def with_own_state(value: Any, attribute: Callable[[Any], Any]) -> Any:
    """A copy of an object with a state; the object itself if it is a large array, or an iterator that has no copy.

    attribute: a function that gives the parts of an array of objects, a queue, an iterator, or the values of a thread.
    """
    kind = type(value)
    if is_iterator(kind):
        return _same_iterator(value, attribute)
    if kind is threading.local or kind is queue.SimpleQueue:
        return fill(kind(), value, attribute)
    if kind is itertools.count:
        return _same_count(value)
    if not is_array(kind):
        return copy.copy(value) if kind.__name__ not in ("Generator", "RandomState") else copy.deepcopy(value)
    if value.nbytes > MOST_BYTES:
        return value
    made = value.copy(order="K")
    if value.dtype.hasobject and value.dtype.names is None:
        made.flat = [attribute(part) for part in value.flat]
    return made


def fill(new: Any, value: Any, attribute: Callable[[Any], Any]) -> Any:
    """Give a new queue the items of another one; new values of threads those that another object has for this thread.

    attribute: a function that gives the new item or value.
    """
    if isinstance(value, threading.local):
        new.__dict__.update({name: attribute(part) for name, part in list(value.__dict__.items())})
        return new
    items = []
    while not value.empty():
        items.append(value.get_nowait())  # a queue of this class shows its items to none but who takes them
    for item in items:
        value.put(item)
    for item in items:
        new.put(attribute(item))
    return new


def parts_of_iterator(value: Any) -> tuple[Any, ...]:
    """The class of an iterator, what it is made of, and where it is; nothing where Python does not say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 and 3.13
        try:
            return tuple(value.__reduce__())
        except TypeError:
            return ()


def _same_iterator(value: Any, attribute: Callable[[Any], Any]) -> Any:
    """An iterator that goes on as another one; the same one if it takes from what cannot be copied."""
    kind, *rest = parts_of_iterator(value) or (None,)
    if kind is None:
        return value
    if kind is iter and len(rest) == 1 and type(rest[0][0]) in (list, tuple):  # a new list of what is left of a dict
        return iter([attribute(part) for part in rest[0][0]])
    made = [attribute(part) for part in rest[0]]
    if any(new is part and hasattr(type(part), "__next__") for new, part in zip(made, rest[0], strict=True)):
        return value
    if kind is iter and len(made) == 2 and made[0] is rest[0][0]:  # a function that is called for each value
        return value
    states = [tuple(map(attribute, part)) if type(part) is tuple else attribute(part) for part in rest[1:2]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        new = kind(*made)
        for state in states:
            if state is not None:
                new.__setstate__(state)
    return new


def _same_count(count: Any) -> Any:
    """A counter that goes on as another one; the same one if it counts by other objects than numbers.

    Newer versions of Python do not copy one, but all write its numbers: `count(3, 2)`.
    """
    try:
        numbers = ast.literal_eval(f"{repr(count)[len('count') : -1]},)")
    except (ValueError, SyntaxError):
        return count
    return itertools.count(*numbers)
