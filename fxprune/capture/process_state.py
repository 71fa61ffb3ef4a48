"""Temporary changes of state that all threads of the process share, each as a context manager.

| state | context manager | change, and for how long |
| --- | --- | --- |
| Python's cyclic garbage collector | `public_call` | off, during one call of a public function |
| function caches, variables, containers, generators that a model's code uses | `clean_caches` | as before after a run |
| functions with a cache in the files of a model | `no_caches` | replaced by those they wrap, during a run |
| the level of torch's log about fake tensors | `no_fake_tensor_log` | critical errors only, during a run on them |
| torch's fast path of attention | `no_fused_attention` | off, during a run |
| torch's fused operations of recurrent layers (cuDNN, oneDNN) | `no_fused_recurrence` | off, during a run |
| global hooks of `nn.Module` | `module_hooks` | one before and one after each forward, during a run |
| `nn.Module.__call__`, `nn.Module.__getattr__` | `tracing` | replaced by `torch.fx` while it traces |
| `nn.Module.training` and others, see `reads.py` | `watched_reads` | notes who reads them, during a run |
| names of functions that traces wrap | `tracing`, `silence` | without the dotted ones, while one runs |
| other attributes of torch, see `trace_watch.py`, `seeds.py` | `tracing` | functions that report, while a trace runs |
| printing, filters of warnings | `silence` | nothing of this thread is shown, during an export |
| `logging.Logger.handle` | `no_logs` | drops what this thread logs, during an export |
| the random generators of torch, numpy and Python | `same_random_state` | set back after a run |

Every context manager restores the earlier state at its end, also after an exception. All of them hold the same lock
meanwhile. A thread can take it several times; a second thread waits until the first one has released it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import logging
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributions import Distribution
from torch.fx import _symbolic_trace as torch_trace
from torch.nn.modules import module as torch_module

from fxprune.capture.file_state import Code, FileState, uncached
from fxprune.capture.kept_values import Kept, held_values
from fxprune.capture.lengths import lengths_are_sizes
from fxprune.capture.thread_state import usual_state

_LOCK = threading.RLock()

_STATES: list[dict[Code, FileState]] = []
"""The states of the user's files that are known during the public calls which run now, one in the other.

They hold every value of these files, so none is known for longer: a model that the user deletes would live on.
"""
_STATES_OF_PACKAGES: dict[Code, FileState] = {}
"""The states of installed files that are known, the one that was made last at the end."""
_MOST_STATES = 4
"""The number of states of installed files that are known at most."""

AFTER_RUNS: list[Callable[[], None]] = []
"""Functions that put back what a run has written into an original: see `kept_buffers.py`."""

_WATCHING: list[tuple[Callable[[nn.Module, Any], None], Callable[[nn.Module, Any, Any, Any], None]]] = []
"""The functions that `module_hooks` calls now."""


def after_run() -> None:
    """Put back what a run has written into an original: the next run must find what this one has found."""
    for restore in AFTER_RUNS:
        restore()


def lock() -> contextlib.AbstractContextManager[Any]:
    """The lock that everything here holds."""
    return _LOCK


@contextlib.contextmanager
def public_call() -> Iterator[None]:
    """Runs a public function: one call at a time in a process, without cyclic garbage collection, in the usual state.

    The state of its thread is set to the usual one meanwhile (see `fxprune.capture.thread_state`), so that the result
    is the same under `torch.inference_mode`, autocast and the like.

    A call makes many small objects (nodes, fake tensors) that live until it ends. Their number triggers full garbage
    collections, each of which visits everything that torch has loaded. That takes a good part of a second and finds
    nothing.

    The first export of a process turns off the checks of all distributions for good (`set_default_validate_args`). They
    are turned on again.
    """
    with _LOCK, usual_state():
        enabled, checked = gc.isenabled(), Distribution._validate_args
        gc.disable()
        _STATES.append(_STATES[-1] if _STATES else {})
        try:
            yield
        finally:
            _STATES.pop()
            Distribution._validate_args = checked
            if enabled:
                gc.enable()


@contextlib.contextmanager
def no_fake_tensor_log() -> Iterator[None]:
    """Stops torch from logging errors on fake tensors.

    They are raised anyway, and the log has a hundred lines for each.
    """
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
    """Turns off the fast path of `nn.MultiheadAttention` and `nn.TransformerEncoderLayer`.

    The fast path is one fused operation, whose parts a dispatch mode cannot see.
    """
    with _LOCK:
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def no_fused_recurrence() -> Iterator[None]:
    """Turns off cuDNN and oneDNN, whose fused operations of recurrent layers a dispatch mode cannot look into."""
    backends: Any = torch._C
    with _LOCK:
        before = backends._get_cudnn_enabled(), backends._get_mkldnn_enabled()
        backends._set_cudnn_enabled(False)
        backends._set_mkldnn_enabled(False)
        try:
            yield
        finally:
            backends._set_cudnn_enabled(before[0])
            backends._set_mkldnn_enabled(before[1])


@contextlib.contextmanager
def same_random_state() -> Iterator[None]:
    """Restores the random generators of torch, numpy and Python at the end.

    So later random numbers are the same as without the run.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with _LOCK, torch.random.fork_rng(devices=devices):
        before = random.getstate(), np.random.get_state()
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextlib.contextmanager
def module_hooks(
    before: Callable[[nn.Module, Any], None], after: Callable[[nn.Module, Any, Any, Any], None]
) -> Iterator[None]:
    """Calls `before(module, args)` and `after(module, args, kwargs, result)` around every forward in this thread.

    Torch calls the hooks in all threads. In another one it may leave out `kwargs`, if the hooks are removed meanwhile.
    """
    thread = threading.get_ident()

    def here(function: Callable[..., None]) -> Callable[..., None]:
        return lambda *call: function(*call) if threading.get_ident() == thread else None

    with _LOCK:
        handles = [
            torch_module.register_module_forward_pre_hook(here(before)),
            torch_module.register_module_forward_hook(here(after), with_kwargs=True),
        ]
        _WATCHING.append((before, after))
        try:
            yield
        finally:
            _WATCHING.remove((before, after))
            for handle in handles:
                handle.remove()
                torch_module._global_forward_hooks_with_kwargs.pop(handle.id, None)  # torch forgets this one


def in_module(module: nn.Module, method: Callable[..., Any], inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """The result of a method, with the functions of `module_hooks` called as around a forward of its module."""
    with _LOCK:
        for before, _ in _WATCHING:
            before(module, inputs[0])
        made = method(*inputs[0], **inputs[1])
        for _, after in _WATCHING:
            after(module, *inputs, made)
        return made


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Holds the lock while `torch.fx.Tracer` traces: it replaces methods of `nn.Module` in the whole process.

    A graph that `torch.load` has read registers functions of torch by dotted names (`wrap`), which no file has as a
    global: from then on every trace of the process ends in a `KeyError`. Such names are taken out meanwhile.
    """
    with _LOCK:
        wrapped: dict[tuple[int, str], Any] = torch_trace._wrapped_fns_to_patch
        dotted = {key: value for key, value in wrapped.items() if "." in key[1]}
        for key in dotted:
            del wrapped[key]
        try:
            yield
        finally:
            wrapped.update(dotted)


@contextlib.contextmanager
def silence() -> Iterator[list[warnings.WarningMessage]]:
    """Hides prints and logs of this thread, and yields a list that collects warnings, those of all threads.

    Nothing is lost: torch raises the errors that it prints and logs. Also turns off the fast path of attention.
    """
    with (
        tracing(),
        no_fused_attention(),
        no_logs(),
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(_OfOtherThreads(sys.stdout)),
        contextlib.redirect_stderr(_OfOtherThreads(sys.stderr)),
    ):
        warnings.simplefilter("always")
        yield caught


@contextlib.contextmanager
def no_logs() -> Iterator[None]:
    """Drops what this thread logs, up to errors. `logging.disable` would do so for all threads."""
    with _LOCK:
        loggers: Any = logging.Logger
        thread, handle = threading.get_ident(), loggers.handle

        def of_other_threads(logger: logging.Logger, record: logging.LogRecord) -> None:
            if threading.get_ident() != thread or record.levelno > logging.ERROR:
                handle(logger, record)

        loggers.handle = of_other_threads
        try:
            yield
        finally:
            loggers.handle = handle


class _OfOtherThreads(io.StringIO):
    """A stream that drops what the thread writes that made it, and passes on what others write."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Write a text; returns its length."""
        return len(text) if threading.get_ident() == self._thread else int(self._stream.write(text))

    def flush(self) -> None:
        """Flush the stream of the other threads."""
        if threading.get_ident() != self._thread:
            self._stream.flush()


# -- what forward leaves in the files of a model -------------------------------------------------------------


@contextlib.contextmanager
def clean_caches(model: nn.Module) -> Iterator[tuple[list[FileState], Kept]]:
    """Takes out again what a run leaves in the files of the model, and in what the model holds beside its modules: in
    function caches, variables, containers, closures, attributes of functions, classes and objects.

    For example, a table of positions is often made by a function with `functools.lru_cache`. A run on fake tensors
    would leave a fake table in the cache, and every later forward of every model with that function would get it.
    Generators of random numbers there get the state back that they had. Yields the states of the files, and what the
    model holds beside its modules, as they were.
    """
    with _LOCK:
        before, held = _file_states(Code.of(model)), _held(model)
        caches = list({id(cache): cache for cache in (*_in_all(before, "functions"), *held.caches)}.values())
        filled = [_filled(cache) for cache in caches]
        generators = list(_in_all(before, "generators"))
        states = [generator.get_state() for generator in generators]
        try:
            yield before, held
        finally:
            for generator, drawn in zip(generators, states, strict=True):
                generator.set_state(drawn)
            for cache, known in zip(caches, filled, strict=True):
                if _filled(cache) != known:
                    cache.cache_clear()
            for state in before:
                state.kept.restore()
            held.restore()
            after_run()


def _held(model: nn.Module) -> Kept:
    """The functions, objects and containers that a model holds, as they are now. Copies of the model may share them."""
    return Kept((), held_values(model), leave=map(id, model.modules()))


def _file_states(code: Code) -> list[FileState]:
    """The states of the files of some code now, of installed packages and of the user's; known ones if current."""
    installed, own = code.parts
    states = [
        _file_state(installed, _STATES_OF_PACKAGES) if installed.files else None,
        _file_state(own, _STATES[-1] if _STATES else {}),
    ]
    while len(_STATES_OF_PACKAGES) > _MOST_STATES:
        del _STATES_OF_PACKAGES[next(iter(_STATES_OF_PACKAGES))]
    return [state for state in states if state is not None]


def _file_state(code: Code, known: dict[Code, FileState]) -> FileState:
    """The state of the files of some code now; one that is known already if it is current."""
    if code not in known or not known[code].current():
        known.pop(code, None)
        known[code] = FileState(code)
    return known[code]


def _in_all(states: Iterable[FileState], name: str) -> Iterator[Any]:
    """The objects in an attribute of all states."""
    return itertools.chain.from_iterable(getattr(state, name) for state in states)


def _filled(cache: Any) -> tuple[int, int | None]:
    """The number of results that a cache holds, and of all it has made: a full one drops one for each new one."""
    info = cache.cache_info()
    return info.currsize, getattr(info, "misses", None)


@contextlib.contextmanager
def no_caches(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Replaces the functions with a cache in the files of the model by the functions they wrap, during a run.

    A cached function of `(batch, heads)` would return numbers that were made in the run of another layer with as many
    heads. `len` of a tensor gives a size, which keeps its mark. Yields a function that takes out again what the run has
    left in other places of these files so far.
    """
    with clean_caches(model) as (before, held):
        undo: list[Callable[[], None]] = []

        def forget() -> None:
            for kept in (*(state.kept for state in before), held):
                kept.forget_marks()

        try:
            for place in _in_all(before, "places"):
                undo.append(place.replace(uncached(place.function)))
            with lengths_are_sizes([file for state in before for file in state.code.files]):
                yield forget
        finally:
            for restore in reversed(undo):
                restore()
