"""A dispatch mode that counts the multiply-adds of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.arguments import bound
from fxprune.capture.fake_operations import run
from fxprune.capture.scopes import Scopes
from fxprune.ops.macs import products

Found = tuple[str, str, "int | None"]
"""One operation: the path of the module that runs it, its name, its multiply-adds (None if they are unknown)."""


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the multiply-adds of every ATen operation that has some, and the innermost module that runs it.

    scopes: keeps track of the modules. module: the path to note where no module runs. found: the result.
    seen: called with the operator, its arguments by name and its result.
    """

    def __init__(self, scopes: Scopes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scopes, self.module = scopes, ""
        self.seen: Callable[[Any, dict[str, Any], Any], None] = lambda func, arguments, made: None
        self.found: list[Found] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        made = run(func, args, kwargs)
        name, arguments = bound(func, args, kwargs)
        self.seen(func, arguments, made)
        sizes = products(func, arguments, made, lambda tensor: tuple(tensor.shape))
        if sizes != []:
            path = self.module if self.scopes.current.module is None else self.scopes.current.path
            self.found.append((path, name, None if sizes is None else sum(map(math.prod, sizes))))
        return made
