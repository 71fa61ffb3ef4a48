"""The values of a symbolic trace: what they do that those of `torch.fx` do not.

Operators in place stay in place (`y += h`), and what a graph cannot express is told to the tracer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.proxy import Attribute, Proxy, TracerBase

_SIZES = ("shape", "ndim", "size", "dim", "numel", "__len__", "stride", "nelement")
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.getitem)


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    target, plain = getattr(operator, f"i{name}"), getattr(operator, f"{name}_" if name in ("and", "or") else name)

    def operate(self: Any, other: Any) -> Any:
        chosen = plain if _is_size(self.node) else target
        return self.tracer.create_proxy("call_function", chosen, (self, other), {})

    return operate


def _is_size(node: fx.Node) -> bool:
    """True if a node is a size of a tensor, or computed from nothing else: `n += 1` changes no value in place."""
    if node.op == "call_method":
        return node.target in _SIZES
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _SIZES
    nodes = [a for a in node.args if isinstance(a, fx.Node)]
    return node.target in _ARITHMETIC and bool(nodes) and all(map(_is_size, nodes))


class Symbol(Proxy):
    """A value of the trace. Operators in place stay in place; an assignment to an attribute is reported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            self.tracer.happened(f"assigns to .{name} of a tensor")  # type: ignore[attr-defined]
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return SymbolAttribute(self, name)


_NAMES = "add sub mul truediv floordiv mod pow and or xor lshift rshift matmul".split()
OPERATORS: tuple[Any, ...] = tuple(getattr(operator, f"i{name}") for name in _NAMES)
"""The operators in place, such as `operator.iadd` for `+=`."""

for _name in _NAMES:
    setattr(Symbol, f"__i{_name}__", _in_place(_name))


class SymbolAttribute(Symbol, Attribute):
    """An attribute of a value of the trace, which is a node only if it is used."""


class Buffer(Symbol):
    """A buffer: a node of the graph, whose shape and kind are known."""

    def __init__(self, node: fx.Node, tracer: TracerBase, value: torch.Tensor) -> None:
        super().__init__(node, tracer)
        object.__setattr__(self, "_known", value)

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_cuda"):
            return getattr(self._known, name)
        if name in ("size", "dim", "numel", "is_floating_point", "is_complex"):
            return getattr(self._known, name)
        return super().__getattr__(name)

    def __len__(self) -> int:
        return len(self._known)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.happened("assigns into a buffer")  # type: ignore[attr-defined]
        raise TypeError("a symbolic trace cannot assign into a buffer")


IN_PLACE = Symbol.__iadd__.__code__  # type: ignore[attr-defined]
"""The code of all operators in place."""
