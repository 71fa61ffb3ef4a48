"""Objects of the standard library and of numpy that hold values of the user, or have a state of their own.

A forward may keep something there between two calls, or draw numbers: each copy of a model has its own.
"""

from __future__ import annotations

import ast
import copy
import itertools
import queue
import threading
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
    ("itertools", "count"),
    *(("builtins", f"{name}_iterator") for name in ("list", "tuple", "range", "longrange", "str_ascii", "bytes")),
    *(("numpy.random._generator", "Generator"), ("numpy.random.mtrand", "RandomState")),
}
"""The classes of objects whose state a call of them changes, as the module and the name of each."""
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
    return (kind.__module__, kind.__name__) in _WITH_STATE or is_array(kind)


@once_per_class
def is_array(kind: type) -> bool:
    """True for the class of numpy's arrays."""
    return (kind.__module__, kind.__name__) == ("numpy", "ndarray")


def with_own_state(value: Any, attribute: Callable[[Any], Any]) -> Any:
    """A copy of an object with a state; the object itself if it is a large array.

    attribute: a function that gives the parts of an array of objects.
    """
    kind = type(value)
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


def _same_count(count: Any) -> Any:
    """A counter that goes on as another one; the same one if it counts by other objects than numbers.

    Newer versions of Python do not copy one, but all write its numbers: `count(3, 2)`.
    """
    try:
        numbers = ast.literal_eval(f"{repr(count)[len('count') : -1]},)")
    except (ValueError, SyntaxError):
        return count
    return itertools.count(*numbers)
