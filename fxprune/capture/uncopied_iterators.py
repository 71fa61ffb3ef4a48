"""Iterators without a copy, such as generators, and what stands in their places in copies of a model that are run.

Who takes a value from such an iterator takes it from everyone: a run of a copy would move the user's model on.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from fxprune.capture.containers import found_in, key_text
from fxprune.capture.library_state import is_iterator, parts_of_iterator
from fxprune.errors import CaptureError

_MOST_STEPS = 8
"""The most iterators, one in the other, that are looked into for a name."""


class NoCopy:
    """An iterator that raises an error where a value is taken from it. It stands for one that cannot be copied.

    model: the one whose attributes hold the iterator. iterator: the one that it stands for, which stays as it is.
    """

    def __init__(self, model: nn.Module, iterator: Any) -> None:
        self._model, self._iterator = model, iterator

    def __iter__(self) -> NoCopy:
        return self

    def __next__(self) -> NoReturn:
        name, kind = _name_of(self._model, self._iterator), type(self._iterator).__name__
        raise CaptureError(
            "forward takes values from an iterator that cannot be copied", raised=True,
            at=f"{name}, of type {kind}",
            why="each run that is needed here would take a value from the one that your model holds",
            do="hold an object of a class of your own instead, with a `__next__` that counts in an attribute, "
            "or give the values to forward as an input",
        )  # fmt: skip

    def send(self, value: Any) -> NoReturn:
        """Raises, as `next` does."""
        self.__next__()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"cannot pickle {type(self._iterator).__name__!r} object")  # as Python says of the iterator


def _name_of(model: nn.Module, iterator: Any) -> str:
    """The name of the attribute in which a model holds an iterator, itself or inside of another one."""
    seen: dict[int, Any] = {}
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            for keys, _ in found_in(value, lambda one: _takes_from(one, iterator), seen):
                return f"{path}.{name}".lstrip(".") + "".join(map(key_text, keys))
    return "an attribute of the model"


def _takes_from(value: Any, iterator: Any, steps: int = 0) -> bool:
    """True if a value is an iterator, or one that takes its values from it."""
    if value is iterator:
        return True
    if steps > _MOST_STEPS:
        return False
    if is_iterator(type(value)):
        return any(_takes_from(part, iterator, steps + 1) for part in parts_of_iterator(value)[1:])
    return type(value) is tuple and steps > 0 and any(_takes_from(part, iterator, steps + 1) for part in value)
