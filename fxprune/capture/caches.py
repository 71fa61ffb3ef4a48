"""Function caches beside a model: what a run on other tensors puts into them is taken out again.

Position tables are often made by a function under `functools.lru_cache`. A run on fake tensors would leave a fake table
there, for every later forward of every model that shares the function.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def clean_caches(model: nn.Module) -> Iterator[None]:
    """Empty the caches that grow inside: those of functions and methods in the files of the model's classes."""
    found = list(_caches(model))
    before = [cache.cache_info().currsize for cache in found]
    try:
        yield
    finally:
        for cache, size in zip(found, before, strict=True):
            if cache.cache_info().currsize != size:
                cache.cache_clear()


def _caches(model: nn.Module) -> Iterator[Any]:
    files = {kind.__module__ for module in model.modules() for kind in type(module).__mro__}
    seen: set[int] = set()
    for name in sorted(files):
        if name == "builtins" or name.startswith("torch.") or name not in sys.modules:
            continue
        for value in list(vars(sys.modules[name]).values()):
            parts = list(vars(value).values()) if isinstance(value, type) and value.__module__ == name else [value]
            for cache in (cache for part in parts for cache in _behind(part)):
                if id(cache) not in seen:
                    seen.add(id(cache))
                    yield cache


def _behind(value: Any) -> Iterator[Any]:
    """The cache that a function is, or that a function around it calls."""
    function = getattr(value, "__func__", value)
    closure = function.__closure__ or () if isinstance(function, types.FunctionType) else ()
    for candidate in (function, *(_content(cell) for cell in closure)):
        if isinstance(candidate, types.FunctionType | types.BuiltinFunctionType | type):
            continue
        if callable(getattr(candidate, "cache_clear", None)) and callable(getattr(candidate, "cache_info", None)):
            yield candidate


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
