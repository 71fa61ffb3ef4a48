"""Numbers of the example inputs that were written into the smaller graph, computed from the inputs again.

A number that is computed from a width keeps its old value, and is written as a number: 4.0 for `sqrt(x.shape[1])` of 16
channels. A number that also counts the batch, as `x.numel()` does, is another one for another batch. So its nodes are
repeated with the old widths: `sqrt(x.numel() * 2)` where half of the channels are left.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, MutableMapping
from fractions import Fraction
from typing import Any

import torch
from torch import fx

_COUNTS: frozenset[Any] = frozenset({"numel", "nelement", torch.numel, torch.ops.aten.sym_numel.default})
_SIZES: frozenset[Any] = frozenset({"size", torch.ops.aten.sym_size.int})
_NUMBERS: frozenset[Any] = frozenset(
    {operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow}
    | {operator.neg, operator.pos, operator.abs, int, float, min, max, round, pow, abs, sum}
    | {math.sqrt, math.prod, math.pow, math.log, math.log2, math.exp, math.ceil, math.floor, math.trunc, math.gcd}
)
"""The functions of numbers that are repeated."""


def compute_again(
    graph: fx.Graph, before: MutableMapping[fx.Node, fx.Node], old: Mapping[str, Any], new: Mapping[fx.Node, Any]
) -> None:
    """Compute the numbers from the inputs again that were written into a graph, where they count more than widths.

    Args:
        graph: the smaller graph, which is changed.
        before: node of it -> node of the original graph. Gets the nodes that are added.
        old: name of a node of the original graph -> its value, with operands for tensors.
        new: node of the smaller graph -> its value.
    """
    numbers = _Numbers(graph, before, old, new)
    for node in list(graph.nodes):
        original = before[node]
        with graph.inserting_before(node):
            if len(original.args) == len(node.args):
                node.args = numbers.computed(original.args, node.args)
            if original.kwargs.keys() == node.kwargs.keys():
                node.kwargs = {name: numbers.computed(original.kwargs[name], node.kwargs[name]) for name in node.kwargs}


class _Numbers:
    """The numbers of both graphs. The arguments are those of `compute_again`."""

    def __init__(
        self, graph: fx.Graph, before: MutableMapping[fx.Node, fx.Node], old: Mapping[str, Any], new: Mapping[Any, Any]
    ) -> None:
        self._graph, self._before, self._old, self._new = graph, before, old, dict(new)
        self._copies = {original: node for node, original in before.items()}
        self._made: dict[fx.Node, Any] = {}

    def computed(self, original: Any, written: Any) -> Any:
        """An argument of the smaller graph, with nodes for the numbers in it that count more than widths."""
        if isinstance(original, fx.Node):
            number = self._old[original.name]
            if type(written) not in (int, float) or type(written) is not type(number) or written != number:
                return written
            again = self._with_old_widths(original)
            return again if isinstance(again, fx.Node) else written
        if isinstance(original, (list, tuple)) and isinstance(written, (list, tuple)) and len(original) == len(written):
            return type(written)(map(self.computed, original, written))
        return written

    def _with_old_widths(self, original: fx.Node) -> Any:
        """A number of the original graph in the smaller one: a node, or the number if it counts widths alone.

        None if it is made by a function that is not known here.
        """
        if original not in self._made:
            self._made[original] = self._repeated(original)
        return self._made[original]

    def _repeated(self, original: fx.Node) -> Any:
        copy, old = self._copies[original], self._old[original.name]
        target: Any = original.target
        if copy not in self._new:
            return None
        now = self._new[copy]
        if type(old) is type(now) and old == now:
            return copy
        if isinstance(old, tuple):
            return self._shape(original, copy, old, now)
        if target in _COUNTS:
            return self._whole_count(original, copy, old, now)
        if target in _SIZES or _is_size(original):
            return old
        if target not in _NUMBERS or original.kwargs:
            return None
        args = fx.map_arg(original.args, self._with_old_widths)
        values = fx.map_arg(args, self._new.__getitem__)
        if any(value is None for value in _flat(values)) or target(*values) != old:
            return None
        return self._add(original, target, args) if any(map(_is_node, _flat(args))) else old

    def _shape(self, original: fx.Node, copy: fx.Node, old: tuple[Any, ...], now: Any) -> Any:
        """The sizes of a tensor, those that have changed as numbers."""
        if not isinstance(now, tuple) or len(now) != len(old):
            return None
        pairs = enumerate(zip(old, now, strict=True))
        return tuple(self._add(original, operator.getitem, (copy, i)) if a == b else a for i, (a, b) in pairs)

    def _whole_count(self, original: fx.Node, copy: fx.Node, old: int, now: int) -> Any:
        """The number of elements that a tensor had: it is a fixed multiple of the number that it has."""
        if not now:
            return None
        ratio = Fraction(old, now)
        product = self._add(original, operator.mul, (copy, ratio.numerator))
        return (
            product if ratio.denominator == 1 else self._add(original, operator.floordiv, (product, ratio.denominator))
        )

    def _add(self, original: fx.Node, target: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
        """Add a node for a number of the original graph."""
        node = self._graph.call_function(target, args)
        self._before[node] = original
        node.meta.update(self._copies[original].meta)
        self._new[node] = target(*fx.map_arg(args, self._new.__getitem__))
        return node


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def _is_size(node: fx.Node) -> bool:
    """True for the size of a dimension, as `x.shape[1]`."""
    return node.target is operator.getitem and type(node.args[1]) is int


def _flat(values: Any) -> list[Any]:
    return [one for value in values for one in (_flat(value) if isinstance(value, (list, tuple)) else [value])]
