"""`len` of a tensor in the files of a model. Python makes a plain integer of whatever `__len__` gives.

So while forward is looked at, `len` in these files is a function that gives the first size of a tensor, which has a
mark (see `fxprune/analysis/marked_integers.py`), and otherwise what `len` gives.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch

_NAME = "len"


def _length(value: Any, /) -> int:
    """The length of an object; of a tensor, its first size."""
    plain = isinstance(value, torch.Tensor) and value.ndim and type(value).__len__ is torch.Tensor.__len__
    return value.size(0) if plain else len(value)


@contextlib.contextmanager
def lengths_are_sizes(files: Iterable[types.ModuleType]) -> Iterator[None]:
    """Puts `_length` in the place of `len` in some files, but for those that have a `len` of their own."""
    spaces = [space for space in map(vars, files) if _NAME not in space]
    for space in spaces:
        space[_NAME] = _length
    try:
        yield
    finally:
        for space in spaces:
            if space.get(_NAME) is _length:
                del space[_NAME]
