"""The bar of a long run: bytes and the time that is left, on a terminal alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from fxprune.progress import bar


@contextlib.contextmanager
def byte_bar(what: str, total: int, done: int = 0, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar, if stderr is a terminal; yields the function that moves it by some bytes, from any thread."""
    lock = threading.Lock()
    with bar(total=total, initial=done, what=what, unit="B", unit_scale=True, show=show) as drawn:

        def tell(count: int) -> None:
            with lock:
                drawn.update(count)

        yield tell
