"""The tracer by which a pickled graph is traced again when it is loaded."""

from __future__ import annotations

import copyreg
from typing import Any

from torch import fx


class _MadeOfTorch(type):
    """The class of `BufferTracer`. A pickle has no name of such a class, but makes one from classes of torch."""


class BufferTracer(fx.Tracer, metaclass=_MadeOfTorch):
    """A tracer that reads buffers in the graph, as `fxprune.trace` does.

    torch traces a graph again when its pickle is loaded. Its own tracer computes what buffers alone determine at that
    moment: later changes of a buffer would have no effect, a counter would not count, and a slice of a buffer whose end
    is a size could not be loaded.
    """

    proxy_buffer_attributes = True


def _from_torch(kind: type) -> tuple[Any, ...]:
    """The call by which a pickle makes the tracer, where fxprune may be missing.

    A graph that is loaded drops a tracer with such a name, since it cannot be pickled again by it.
    """
    return type, ("<locals>.Tracer", (fx.Tracer,), {"proxy_buffer_attributes": True})


copyreg.pickle(_MadeOfTorch, _from_torch)
