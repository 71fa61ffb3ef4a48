"""The flow of values through one forward: operations, calls of modules, and what each of them reads and gives.

A value is a number for a tensor as one operation has left it. What is written in place is a new value, and whoever
reads another view of the same memory later reads the new value too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxprune.depth.calls import Addition

Cut = Mapping[int, frozenset[int]]
"""The number of an operation that adds -> the numbers of its operands that go."""


@dataclass(eq=False)
class Operation:
    """An operation of a forward.

    name: such as "aten::add_". calls: the numbers of the calls of modules in which it runs, the outermost first.
    reads, writes: values. operands: the values of its first two arguments, the newest last; empty where one is no
        tensor.
    addition: where it stands in the code, if it adds or subtracts two tensors. line: that line of the code.
    keeps: for each of its operands True if the result has the shape and type of the other one.
    """

    name: str
    calls: tuple[int, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    operands: tuple[tuple[int, ...], ...] = ()
    addition: Addition | None = None
    keeps: tuple[bool, ...] = ()
    line: str = ""


@dataclass(eq=False)
class ModuleCall:
    """A call of a module.

    arguments: position or keyword -> the value of an argument that is a tensor, and True if it is a floating one.
    positional: the number of positional arguments. keywords: True if there are others.
    form: the result with each tensor replaced by its value, lists and tuples as lists, anything else None.
    parts: the names of the types of lists, tuples and other containers in the result.
    reshapes: True if the result is a tensor of another shape than the first argument.
    """

    path: str
    number: int
    outer: int | None
    arguments: dict[int | str, tuple[int, bool]] = field(default_factory=dict)
    positional: int = 0
    keywords: bool = False
    form: Any = None
    parts: set[str] = field(default_factory=set)
    reshapes: bool = False


@dataclass(eq=False)
class Flow:
    """The operations and calls of one forward.

    always: the numbers of the operations that count whatever reads them. results: the values of the outputs.
    decisions: the numbers of those that code may decide by. They count where the module whose code it is still runs.
    maker: value -> the number of the operation that gives it.
    state: the value of a parameter or buffer -> its names.
    kernels: the names of parameters with two dimensions or more.
    floating: the values that are floating-point numbers.
    """

    operations: list[Operation] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    always: set[int] = field(default_factory=set)
    decisions: set[int] = field(default_factory=set)
    results: tuple[int, ...] = ()
    maker: dict[int, int] = field(default_factory=dict)
    state: dict[int, tuple[str, ...]] = field(default_factory=dict)
    kernels: set[str] = field(default_factory=set)
    floating: set[int] = field(default_factory=set)

    def live(self, cut: Cut) -> set[int]:
        """The numbers of the operations that outputs depend on, where additions lose operands."""
        found: set[int] = set()
        waiting = [self.maker[v] for v in self.results if v in self.maker] + list(self.always)
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += [self.maker[v] for v in self.read_by(number, cut) if v in self.maker]
            if not waiting:
                running = {call for live in found for call in self.operations[live].calls}
                waiting = [n for n in self.decisions - found if running.issuperset(self.operations[n].calls[-1:])]
        return found

    def read_by(self, number: int, cut: Cut) -> Sequence[int]:
        """The values that an operation reads, without those of operands that go."""
        operation = self.operations[number]
        if number not in cut:
            return operation.reads
        return [v for operand, values in enumerate(operation.operands) if operand not in cut[number] for v in values]

    def before(self, value: int) -> set[int]:
        """The values that a value comes from."""
        found: set[int] = set()
        waiting = [value]
        while waiting:
            maker = self.maker.get(waiting.pop())
            if maker is not None:
                new = set(self.operations[maker].reads) - found
                found |= new
                waiting += new
        return found
