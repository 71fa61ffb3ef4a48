"""The bar of a long run: bytes and the time that is left, on a terminal alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def byte_bar(what: str, total: int, done: int = 0, *, show: bool) -> Iterator[Callable[[int], None]]:
    """A bar, if stderr is a terminal; yields the function that moves it by some bytes, from any thread."""
    from tqdm import tqdm

    lock, silent = threading.Lock(), None if show else True
    with tqdm(total=total, initial=done, desc=what, unit="B", unit_scale=True, disable=silent) as bar:

        def tell(count: int) -> None:
            with lock:
                bar.update(count)

        yield tell
