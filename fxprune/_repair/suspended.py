"""Runs of functions that wait in the middle, so that several can go on step by step, each in a thread of its own.

Only one of them works at a time: whoever calls `resume` waits until the run waits or ends.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

from fxprune.capture.thread_state import same_state


class Stopped(BaseException):
    """Ends a run that is not needed any more; no code of a model should catch it."""


class SuspendedRun:
    """A run of a function, which may call `pause`.

    value: what the run has paused with, None if it has ended.
    result: what the function returned.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._state = same_state()
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._stopped = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.value: Any = None
        self.result: Any = None
        self.ended = False

    def resume(self) -> Any:
        """Let the run go on until it pauses or ends. Returns `value`. Raises what the run raises."""
        if self.ended:
            return None
        self.value = None
        if self._thread is None:
            context = contextvars.copy_context()
            self._thread = threading.Thread(target=context.run, args=(self._run,), name="fxprune repair", daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._waits.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.value

    def pause(self, value: Any) -> None:
        """Wait inside the run until it is resumed. Raises `Stopped` if it is not needed any more."""
        self.value = value
        self._waits.release()
        self._go.acquire()
        if self._stopped:
            raise Stopped

    def stop(self) -> None:
        """End the run; it frees what it holds."""
        if self._thread is None or self.ended:
            self.ended = True
            return
        self._stopped = True
        self._go.release()
        self._waits.acquire()
        self._thread.join()
        self._error = None

    def _run(self) -> None:
        try:
            with self._state():
                self.result = self._function()
        except Stopped:
            pass
        except BaseException as error:
            self._error = error
        self.ended, self.value = True, None
        self._waits.release()
