"""State of the whole process that the package changes for a while: every piece of it, and the lock that guards it.

| state | changed by | change, and how long |
| --- | --- | --- |
| Python's cyclic garbage collector | `public_call` | off, during one call of a public function |
| function caches in the files of a model's classes | `clean_caches` | emptied after a run, where the run filled them |
| the level of torch's log about fake tensors | `no_fake_tensor_log` | critical errors only, during a run on them |
| torch's fast path of attention | `no_fused_attention` | off, during a run |
| global hooks of `nn.Module` | `module_hooks` | one before and one after each forward, during a run |
| `nn.Module.__call__`, `nn.Module.__getattr__` | `tracing` | replaced by `torch.fx` while it traces |
| printing, logging, filters of warnings | `silence` | nothing is shown, during an export |
| torch's random generators | `same_random_state` | set back after a run |

Each is as it was before when the context manager ends, also by an exception. All of them hold one lock, which a
thread may take again: a second thread waits until the call of the first is over.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

_LOCK = threading.RLock()


@contextlib.contextmanager
def public_call() -> Iterator[None]:
    """Around a public function: one call at a time in a process, and no cyclic garbage collection meanwhile.

    A call makes many small objects, nodes and fake tensors, that live until it ends. Their number sets off full
    collections, each of which walks everything that torch has loaded: a good part of a second, and nothing to find.
    """
    with _LOCK:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()


@contextlib.contextmanager
def no_fake_tensor_log() -> Iterator[None]:
    """Errors on fake tensors are raised only; torch would log each in a hundred lines too."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    with _LOCK:
        before = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(before)


@contextlib.contextmanager
def no_fused_attention() -> Iterator[None]:
    """`nn.MultiheadAttention` and `nn.TransformerEncoderLayer` do without their fast path, one opaque operation."""
    with _LOCK:
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def same_random_state() -> Iterator[None]:
    """Random numbers drawn inside change none that is drawn later."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with _LOCK, torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def module_hooks(
    before: Callable[[nn.Module, Any], None], after: Callable[[nn.Module, Any, Any, Any], None]
) -> Iterator[None]:
    """Call `before(module, args)` and `after(module, args, kwargs, result)` around the forward of every module."""
    with _LOCK:
        handles = [
            torch_module.register_module_forward_pre_hook(before),
            torch_module.register_module_forward_hook(after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
                torch_module._global_forward_hooks_with_kwargs.pop(handle.id, None)  # which torch leaves behind


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """While `torch.fx.Tracer` traces: it replaces methods of `nn.Module`, for all modules of the process."""
    with _LOCK:
        yield


@contextlib.contextmanager
def silence() -> Iterator[list[warnings.WarningMessage]]:
    """Nothing is printed or logged, warnings are collected in the list, and attention has no fast path.

    Torch logs and prints what it also raises.
    """
    with no_fused_attention():
        logs = logging.root.manager.disable
        logging.disable(logging.ERROR)
        try:
            with (
                warnings.catch_warnings(record=True) as caught,
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("always")
                yield caught
        finally:
            logging.disable(logs)


# -- function caches --------------------------------------------------------------------------------------


@contextlib.contextmanager
def clean_caches(model: nn.Module) -> Iterator[None]:
    """Empty the caches that grow inside: those of functions and methods in the files of the model's classes.

    Tables of positions are often made by a function under `functools.lru_cache`. A run on fake tensors would leave a
    fake table there, for every later forward of every model that shares the function.
    """
    with _LOCK:
        found = list(_caches(model))
        before = [cache.cache_info().currsize for cache in found]
        try:
            yield
        finally:
            for cache, size in zip(found, before, strict=True):
                if cache.cache_info().currsize != size:
                    cache.cache_clear()


def _caches(model: nn.Module) -> Iterator[Any]:
    """The caches in the files of a model's classes, each once."""
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
    """The value of a closure's cell, None while it has none."""
    try:
        return cell.cell_contents
    except ValueError:
        return None
