"""The tracer by which a pickled graph is traced again when it is loaded."""

from __future__ import annotations

import copyreg
import pydoc
from typing import Any

from torch import fx


class _MadeOfTorch(type):
    """The class of `BufferTracer`. A pickle does not need such a class, but can make one from classes of torch."""


class BufferTracer(fx.Tracer, metaclass=_MadeOfTorch):
    """A tracer that reads buffers in the graph, as `fxprune.trace` does.

    torch traces a graph again when its pickle is loaded. Its own tracer computes what buffers alone determine at that
    moment: later changes of a buffer would have no effect, a counter would not count, and a slice of a buffer whose end
    is a size could not be loaded.
    """

    proxy_buffer_attributes = True


class _Call:
    """A call in a pickle: what is loaded in its place is the result."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _from_torch(kind: type) -> tuple[Any, ...]:
    """The call by which a pickle finds the tracer, or makes it of torch's where fxprune is missing.

    A graph that is loaded drops a tracer with the name of one that is made, since it cannot be pickled again by it.
    """
    found = _Call(pydoc.locate, f"{kind.__module__}.{kind.__qualname__}")
    made = _Call(type, "<locals>.Tracer", (fx.Tracer,), {"proxy_buffer_attributes": True})
    return next, (_Call(filter, None, (found, made)),)


copyreg.pickle(_MadeOfTorch, _from_torch)
