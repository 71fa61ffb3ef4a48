"""Python's cyclic garbage collector, paused while a pass runs."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No cyclic collection inside; whatever it was set to before holds again after.

    A pass makes many small objects, nodes and fake tensors, that live until it ends. Their number sets off full
    collections, each of which walks everything that torch has loaded: a good part of a second, and nothing to find.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
