"""Long work speaks: bars on a terminal or in a notebook, and a log under "fxprune".

In a pipe or a file there is no bar, and so no carriage return. The log has no handler of its own: who wants to read it
calls `logging.basicConfig(level=logging.INFO)`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

LOG = logging.getLogger("fxprune")
LOG.addHandler(logging.NullHandler())

DELAY = 1.0
"""The seconds after which a step without a count gets a bar."""

_TICK = 0.25


def shown() -> bool:
    """True if stderr is a terminal or a notebook, where a bar can be read."""
    terminal = getattr(sys.stderr, "isatty", None)
    return "ipykernel" in sys.modules or (terminal is not None and bool(terminal()))


def bar(
    items: Any = None, *, what: str, unit: str, total: int | None = None, show: bool = True, **more: Any
) -> tqdm[Any]:
    """A bar over items, or one that is moved by hand. show: False for none at all.

    >>> list(bar([1, 2], what="norms", unit="layer", show=False))
    [1, 2]
    """
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=unit, total=total, disable=not (show and shown()), **more)


@contextlib.contextmanager
def long_step(what: str) -> Iterator[None]:
    """A bar with the seconds that a step takes, where that is longer than `DELAY`; and a line of the log at its end.

    what: the step, such as "proof".
    """
    done, began = threading.Event(), time.monotonic()
    watcher = threading.Thread(target=_watch, args=(what, done), name="fxprune progress", daemon=True)
    if shown():
        watcher.start()
    LOG.debug("%s began", what)
    try:
        yield
    finally:
        done.set()
        if watcher.ident is not None:
            watcher.join()
        LOG.info("%s took %.1f s", what, time.monotonic() - began)


def _watch(what: str, done: threading.Event) -> None:
    if done.wait(DELAY):
        return
    with bar(what=what, unit="", leave=False, bar_format="{desc} [{elapsed}]") as drawn:
        drawn.start_t -= DELAY
        while not done.wait(_TICK):
            drawn.refresh()
