"""The module that is running: the names by which an operation is found again in another run of the same model."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from fxprune.capture.process_state import module_hooks

Key = tuple[str, int, str, int]
"""Scope, how many times it had been entered, operation, how often that operation had run in this scope."""

ATTENTION = "scaled_dot_product_attention"
_SAME = {"aten::_unsafe_view": "aten::view", "aten::_reshape_alias": "aten::view"}


@dataclass(eq=False)
class Scope:
    """One run of a node or of a module: `name` is "%node" or the module's path, "path|einsum" inside an `einsum`."""

    name: str
    number: int
    module: nn.Module | None = None
    operations: Counter[str] = field(default_factory=Counter)

    @property
    def path(self) -> str:
        """The node or module that it is, or stands in."""
        return self.name.partition("|")[0]

    @property
    def loose(self) -> bool:
        """True if other sizes may lead to other operations in here."""
        return "|" in self.name

    def next_key(self, operation: str) -> Key:
        """Count one more operation of this name, and return its key: ask once for each that runs.

        >>> scope = Scope("conv", 1)
        >>> scope.next_key("aten::relu"), scope.next_key("aten::relu")
        (('conv', 1, 'aten::relu', 1), ('conv', 1, 'aten::relu', 2))
        """
        operation = _SAME.get(operation, operation)
        self.operations[operation] += 1
        return self.name, self.number, operation, self.operations[operation]


class Scopes:
    """The stack of what is running. An operation that is repeated or left out elsewhere does not move its key.

    enter, leave: called with the scope of each module as its forward begins and as it returns.
    scaled: called with the key and the queries of an attention that takes its scale from their width.
    """

    def __init__(self, module: nn.Module) -> None:
        self._names: dict[int, tuple[str, nn.Module]] = {}
        self.follow(module, "")
        self._entered: Counter[str] = Counter()
        self.stack: list[Scope] = [Scope("", 0)]
        self.enter: Callable[[Scope], None] = lambda scope: None
        self.leave: Callable[[Scope, Any, Any, Any], None] = lambda scope, args, kwargs, made: None
        self.scaled: Callable[[Key, torch.Tensor], None] = lambda key, query: None

    def follow(self, module: nn.Module, path: str) -> None:
        """Know this module and those in it, by the names that they have in the model; no others."""
        self._names = {id(m): (f"{path}.{n}".strip("."), m) for n, m in module.named_modules()}

    def restart(self) -> None:
        """Count from the beginning: the next run is another one."""
        self._entered.clear()

    @property
    def now(self) -> Scope:
        """The innermost scope."""
        return self.stack[-1]

    def node(self, name: str) -> Scope:
        """Begin with a node of the graph."""
        self.stack = [self._scope(f"%{name}", None)]
        return self.now

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """A scope of its own for what runs in here."""
        self.stack.append(self._scope(f"{self.now.name}|{name}", self.now.module))
        try:
            yield
        finally:
            self.stack.pop()

    def _scope(self, name: str, module: nn.Module | None) -> Scope:
        self._entered[name] += 1
        return Scope(name, self._entered[name], module)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the forwards of all submodules inside."""
        with module_hooks(self._before, self._after), _Composites(self):
            yield

    def _before(self, module: nn.Module, args: Any) -> None:
        known = self._names.get(id(module))
        if known is not None:
            self.stack.append(self._scope(*known))
            self.enter(self.now)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        if id(module) in self._names and self.now.module is module:
            scope = self.stack.pop()
            self.leave(scope, args, kwargs, made)


_COMPOSITE = {
    *(torch.functional.einsum, F.linear, torch.matmul, torch.Tensor.matmul),
    *(torch.Tensor.__matmul__, torch.Tensor.__rmatmul__),
}


class _Composites(TorchFunctionMode):
    """Gives functions that run other operations at other sizes a scope of their own.

    Products fold or copy what they multiply, by its strides; `einsum` treats dimensions of size 1 apart; attention
    chooses among kernels. Attention that takes its scale from the width of the queries is told of, by its key.
    """

    def __init__(self, scopes: Scopes) -> None:
        super().__init__()
        self.scopes = scopes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            if kwargs.get("scale") is None:
                self.scopes.scaled(self.scopes.now.next_key(ATTENTION), query)
        elif func not in _COMPOSITE:
            return func(*args, **kwargs)
        with self.scopes.inside(func.__name__):
            return func(*args, **kwargs)
