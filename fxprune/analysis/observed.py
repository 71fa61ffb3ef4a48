"""Plain data: what one walk over a model has seen of its operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxprune.capture.scopes import Key
from fxprune.channels.vector import Vector
from fxprune.ops import Call, Event, Operand


@dataclass(frozen=True)
class Place:
    """The position of the walk: a node of the graph, the path of its module, its source line."""

    node: str = ""
    module: str = ""
    source: str = ""


@dataclass(frozen=True, eq=False)
class Mark:
    """A statistic over a dimension that may shrink.

    event: the number of the event that says which operation takes it. vector: the dimension. scope: as in `Key`.
    width: whether it only changes because fewer slots are counted, the removed ones being zero.
    made: the ids of the tensors that depend on it.
    """

    event: int
    vector: Vector
    scope: str
    width: bool
    made: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Contraction:
    """The multiply-adds of an operation.

    op, module: the operation, and the path of the innermost module that runs it.
    products: their sum is the number of multiply-adds, each a product of dimensions; None where it is unknown.
    inside: all dimensions that enter or leave an operation whose multiply-adds are unknown, or the module around it
        that is treated as one operation: the products hold as long as none of these dimensions shrinks.
    """

    op: str
    module: str
    products: list[tuple[Vector, ...]] | None
    inside: tuple[Vector, ...] = ()


@dataclass(frozen=True, eq=False)
class Observation:
    """The effects of a node's operations; filled while the node runs.

    counts: integer arguments by name and the vectors they count.
    outputs: what came out of each operation.
    numbers: the fractions that it was called with, which are no sizes and must not follow them; and of which dimension
        they are known to be computed.
    positions: arguments of operations inside a module that are positions in a dimension: name, value, dimension.
    marked: the calls that change a statistic, and what came out of them.
    contractions: the operations that multiply and add up, in order.
    """

    counts: dict[str, tuple[Vector, ...]] = field(default_factory=dict)
    marked: dict[Key, tuple[Call, list[Operand]]] = field(default_factory=dict)
    outputs: dict[Key, list[Operand]] = field(default_factory=dict)
    numbers: dict[Key, tuple[tuple[float, ...], tuple[Vector, ...]]] = field(default_factory=dict)
    positions: dict[Key, list[tuple[str, Any, Vector]]] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Visit:
    """The first call of a module: what went in and came out (tensors as operands), what its operations counted."""

    inputs: Any
    output: Any
    observation: Observation


@dataclass(frozen=True, eq=False)
class Observed:
    """All that the walk has seen.

    nodes: the result of every node of the graph, tensors as operands. observations: what its operations did.
    visits: the first call of every module, by its path.
    events: what locks or marks channels, by number; 0 stands for none, 1 for dimensions that are no channels.
    marks: the statistics over dimensions that may shrink.
    heads: the dimensions that are heads of an attention.
    minima: dimensions from which the model chooses, and how many it chooses at once (topk).
    vectors: every dimension that may shrink, of any tensor, each once.
    renumbered: by the id of a tensor of positions, the dimension that they index.
    """

    nodes: Mapping[str, Any]
    observations: Mapping[str, Observation]
    visits: Mapping[str, Visit]
    events: tuple[Event, ...]
    marks: tuple[Mark, ...]
    heads: tuple[Vector, ...]
    minima: tuple[tuple[Vector, int], ...]
    vectors: tuple[Vector, ...]
    renumbered: Mapping[int, Vector]
