"""The message of `small.graph` and `small.code` where the result has the model's own class, which has no graph.

`transform` returned graphs up to version 0.1, so code that reads these attributes exists. `nn.Module.__getattr__` looks
into the table of buffers; that of the small model raises an `AttributeError` with advice if it is asked for them. So
`type(small)` stays the user's class, no class of the user or of torch is changed, and `hasattr` is False.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

NAMES = ("graph", "code")
"""Attributes of a `GraphModule`."""


class _Buffers(dict[str, Any]):
    """The buffers of a module. A pickle has a plain dict instead."""

    def __contains__(self, name: object) -> bool:
        if name in NAMES and not dict.__contains__(self, name):
            caller = sys._getframe(1)
            module = caller.f_locals.get("self")
            asked = caller.f_code is nn.Module.__getattr__.__code__
            if asked and isinstance(module, nn.Module) and name not in module._modules:
                raise AttributeError(
                    f"this {type(module).__name__} has no {name}: transform keeps the class of a model; "
                    'transform(..., prefer="graph") returns a torch.fx.GraphModule',
                    name=str(name),
                    obj=module,
                )
        return dict.__contains__(self, name)

    def __reduce_ex__(self, protocol: object) -> tuple[type, tuple[()], None, None, Iterator[tuple[str, Any]]]:
        return dict, (), None, None, iter(self.items())


def explain_missing_graph(small: nn.Module) -> None:
    """Let `small.graph` and `small.code` raise an error that says how to get a graph. Changes `small`.

    Does nothing for a graph, and for a class that has such attributes of its own.
    """
    if not isinstance(small, fx.GraphModule) and not any(hasattr(small, name) for name in NAMES):
        small.__dict__["_buffers"] = _Buffers(small._buffers)
