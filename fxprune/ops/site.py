"""A node of the smaller graph, as functions registered with `resizes` and `repositions` see and change it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxprune.channels.groups import Bools, Removal
from fxprune.channels.vector import Vector
from fxprune.errors import RewriteError
from fxprune.ops.registry import Operand


@dataclass(frozen=True)
class Site:
    """A node of the new graph that is about to run.

    node: the node, whose arguments are changed. before: the same node in the old graph.
    removal: the removed channels. output: the result in the old graph, with operands for tensors.
    counts: argument of the node's operation -> the dimensions that its rule counted.
    value: a function, the value of an argument in the new graph. operand: a function, its value in the old graph, with
        operands for tensors.
    """

    node: fx.Node
    before: fx.Node
    removal: Removal
    output: Any
    counts: Mapping[str, tuple[Vector, ...]]
    value: Callable[[Any], Any]
    operand: Callable[[Any], Any]

    @property
    def input(self) -> Operand:
        """The operand of the first argument (`self` of a method, `input` of a function)."""
        node = self.node
        first = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("self"))
        return self.operand(first)  # type: ignore[no-any-return]

    @property
    def result(self) -> Operand | None:
        """The result in the old graph, None if it is not one tensor."""
        return self.output if isinstance(self.output, Operand) else None

    def counted(self, argument: str) -> tuple[int, ...]:
        """The new value of an argument that a rule counted: one size per dimension."""
        return self.removal.shape(self.counts[argument])

    def position(self, value: Any) -> int:
        """The value of a position in the old graph.

        Raises `RewriteError` if it is neither a number nor computed from sizes.
        """
        old = self.operand(value)
        if not isinstance(old, int):
            raise self.refusal(
                "a position that is neither a number nor computed from sizes",
                do="write the position as a number, or ignore the layers before it",
            )
        return old

    def computed(self, argument: Any) -> bool:
        """True if an argument is the result of another node."""
        return isinstance(argument, fx.Node)

    def follows_a_width(self, argument: Any) -> bool:
        """True if an argument is computed from a size that is another one in the new graph."""
        waiting, seen = [argument], set[Any]()
        while waiting:
            node = waiting.pop()
            if not isinstance(node, fx.Node) or node in seen:
                continue
            seen.add(node)
            old = self.operand(node)
            if isinstance(old, int) and old != self.value(node):
                return True
            if not isinstance(old, Operand):
                waiting += node.all_input_nodes
        return False

    def refusal(self, what: str, *, why: str = "", do: str) -> RewriteError:
        """The error to raise where this node cannot be written for the new sizes."""
        at = f"node %{self.node.name}: {self.node.format_node()}"
        return RewriteError(what, node=self.before.name, at=at, why=why, do=do)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword, as it is written in the graph: a number or a node."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def put(self, position: int, name: str, new: Any) -> None:
        """Set an argument, unless its value in the new graph is right as it is."""
        old = self.argument(position, name, _MISSING)
        if old is not _MISSING and _equal(self.value(old), new):
            return
        self.put_anyway(position, name, new)

    def put_sizes(self, position: int, name: str, sizes: Sequence[int]) -> None:
        """Set sizes, whether they are written as one sequence or as several integers; -1 and right values stay."""
        old = self.argument(position, name)
        if isinstance(old, (list, tuple)):
            new = type(old)(self._settled(o, s) for o, s in zip(old, sizes, strict=True))
            if new != old:
                self.put_anyway(position, name, new)
        elif isinstance(self.value(old), (list, tuple)):
            if tuple(self.value(old)) != tuple(sizes):
                self.put_anyway(position, name, tuple(sizes))
        else:
            rest = self.node.args[position:]
            self.node.args = (
                *self.node.args[:position],
                *(self._settled(o, s) for o, s in zip(rest, sizes, strict=True)),
            )

    def put_anyway(self, position: int, name: str, new: Any) -> None:
        """Set an argument by position or keyword, whatever its value is."""
        if len(self.node.args) > position:
            self.node.update_arg(position, new)
        else:
            self.node.update_kwarg(name, new)

    def _settled(self, old: Any, size: int) -> Any:
        """One of several sizes: the old argument if it is right, else the number."""
        return old if self.value(old) in (-1, size) else size


class _Missing:
    pass


_MISSING = _Missing()


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return list(a) == list(b)
    return bool(type(a) is type(b) and a == b)


def rank(kept: Bools | None, position: int) -> int:
    """The number of kept slots before `position`."""
    return position if kept is None else int(kept[:position].sum())
