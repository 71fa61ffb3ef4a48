"""Data classes for the operations that were seen in the run of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxprune.analysis.steps import Steps
from fxprune.capture.inputs import Inputs
from fxprune.capture.scopes import Key
from fxprune.channels.vector import Vector
from fxprune.ops import Call, Event, Operand


@dataclass(frozen=True)
class Place:
    """A place in the run: the name of a node of the graph, the path of a module, and a source line."""

    node: str = ""
    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        return (self.module or "the model") + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True, eq=False)
class Mark:
    """A statistic over a dimension that may shrink.

    event: the number of the event that names the operation.
    vector: the dimension.
    scope: the name of the scope, as in `Key`.
    width: True if the removed slots are zero in the masked reference, so that the statistic changes only because fewer
        slots are counted.
    made: the ids of the tensors that are computed from it.
    """

    event: int
    vector: Vector
    scope: str
    width: bool
    made: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Contraction:
    """The multiply-adds of an operation.

    op: the name of the operation.
    module: the path of the innermost module that runs it.
    products: the number of multiply-adds as a sum of products. Each tuple is a product of the sizes of its dimensions.
        None if the number is unknown.
    inside: all dimensions that enter or leave the operation if `products` is None, or that enter or leave a module that
        is treated as one operation (a leaf). The number stays right as long as none of them shrinks.
    """

    op: str
    module: str
    products: list[tuple[Vector, ...]] | None
    inside: tuple[Vector, ...] = ()


@dataclass(frozen=True, eq=False)
class Observation:
    """The operations of one node, or of one call of a module. It is filled while these run.

    counts: name of an integer argument -> the vectors whose sizes it gives.
    marked: the calls that take a statistic, with their results.
    outputs: the results of every operation.
    numbers: the fractions that an operation was called with, and the dimensions from which they are known to be
        computed. In the small model they must be the same.
    positions: for operations inside a module, the arguments that are positions in a dimension: name, value, dimension.
        The value of a list ("index") is its number among the tensors of the call and its numbers; None if unknown.
    contractions: the operations with multiply-adds, in order.
    seeds: the operations that draw random numbers by a seed of forward's own, and that seed.
    """

    counts: dict[str, tuple[Vector, ...]] = field(default_factory=dict)
    marked: dict[Key, tuple[Call, list[Operand]]] = field(default_factory=dict)
    outputs: dict[Key, list[Operand]] = field(default_factory=dict)
    numbers: dict[Key, tuple[tuple[float, ...], tuple[Vector, ...]]] = field(default_factory=dict)
    positions: dict[Key, list[tuple[str, Any, Vector]]] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    seeds: dict[Key, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Visit:
    """The first call of a module: its inputs and its output, with operands in place of tensors, and its operations."""

    inputs: Any
    output: Any
    observation: Observation


@dataclass(frozen=True, eq=False)
class Walked:
    """One run of the graph, in one mode.

    method: the name of the method that was called; "" is forward.
    training: the mode of the run, as in `nn.Module.train(training)`.
    inputs: the inputs of the run. In training mode every example is in them twice if a statistic needs two values.
    nodes: name of a node -> its result, with operands in place of tensors.
    observations: name of a node -> its operations.
    gradients: True if gradients were recorded, as in a training step.
    readers: the paths of the modules whose mode was read by code that is not torch's.
    again: the second call, which reads the state that this run has left; None if it leaves none, or the call raises.
    """

    training: bool
    inputs: Inputs
    nodes: Mapping[str, Any]
    observations: Mapping[str, Observation]
    method: str = ""
    gradients: bool = False
    readers: frozenset[str] = frozenset()
    again: Walked | None = None

    @property
    def calls(self) -> tuple[Walked, ...]:
        """The run itself and, where there is one, its second call."""
        return (self,) if self.again is None else (self, self.again)


@dataclass(frozen=True, eq=False)
class Observed:
    """Everything that was seen in the runs of a model.

    main: the run on the first example inputs, in the mode in which the model was given.
    visits: path of a module -> its first call in that run; of a module that it does not reach, in another run.
    events: the operations that lock or mark channels, by number. 0 means "none"; 1 locks dimensions that are never
        channels, such as the height of a kernel.
    marks: the statistics over dimensions that may shrink.
    heads: the dimensions that are heads of an attention.
    minima: dimensions in which the model chooses positions (topk), and how many it chooses at once.
    multiples: dimensions whose number of slots must be a multiple of a number, and why.
    vectors: the vectors of all dimensions that may shrink, of any tensor, each once.
    renumbered: id of a tensor of positions -> the dimension in which they are positions.
    others: further runs. One is in the mode in which the model was not given (training for a model in evaluation mode,
        and vice versa), unless no code of the model reads its mode, or forward raises in the other one. The rest are
        calls of other methods, in both modes likewise. Where code asks if gradients are recorded, each of these is
        there with and without gradients.
    more: the runs on the further example inputs, in the mode in which the model was given.
    steps: all operations in order, with the tensors that they read and make.
    """

    main: Walked
    visits: Mapping[str, Visit]
    events: tuple[Event, ...]
    marks: tuple[Mark, ...]
    heads: tuple[Vector, ...]
    minima: tuple[tuple[Vector, int], ...]
    multiples: tuple[tuple[Vector, int, str], ...]
    vectors: tuple[Vector, ...]
    renumbered: Mapping[int, Vector]
    others: tuple[Walked, ...] = ()
    more: tuple[Walked, ...] = ()
    steps: Steps = field(default_factory=Steps)

    @property
    def nodes(self) -> Mapping[str, Any]:
        """Name of a node -> its result in the main run, with operands in place of tensors."""
        return self.main.nodes

    @property
    def observations(self) -> Mapping[str, Observation]:
        """Name of a node -> its operations in the main run."""
        return self.main.observations
