"""The registry of rules, and the things that a rule works with: `Operand`, `Call`, `Event`.

A rule says how the vectors of an operation's results follow from those of its arguments, which vectors must be the
same, and which integer arguments count a dimension. It sees `Operand`s instead of tensors, and a `Call`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fxprune.channels.terms import Terms
from fxprune.channels.vector import Vector
from fxprune.errors import RuleError

Rule = Callable[..., "Operand | Sequence[Operand] | None"]
RuleT = TypeVar("RuleT", bound=Rule)


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor as a rule sees it.

    vectors: one per dimension.
    zero: one flag per dimension, True if the elements at its removed slots are zero in the masked reference. A sum over
        the dimension is exact then.
    value: the numbers of an integer tensor that does not depend on the inputs (an index list), else None.
    labels: a dimension of another tensor, if the numbers of this tensor are positions in it, such as the experts that a
        router chose; else None. The numbers change when that dimension loses slots. An operation that uses them as
        numbers, not as positions, locks that dimension.
    listed: the list of positions whose numbers this tensor repeats along its other dimensions, as `at.expand(n, -1)`
        does; else None. The list has one dimension, which is one of this tensor's, and can be renumbered.
    """

    vectors: tuple[Vector, ...]
    zero: tuple[bool, ...]
    value: torch.Tensor | None = None
    labels: Vector | None = None
    listed: Operand | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every dimension."""
        return tuple(v.size for v in self.vectors)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.vectors)

    def dim(self, index: int) -> Vector:
        """The vector of a dimension."""
        return self.vectors[index]


STRUCTURE = 1
"""The event of dimensions that are no channels: kernel positions and the like."""


@dataclass(frozen=True)
class Event:
    """A place where an operation holds channels back, or makes their removal inexact."""

    op: str
    node: str
    module: str
    source: str
    why: str

    def __str__(self) -> str:
        return f"{self.op} in {self.module or 'the model'}{f' ({self.source})' if self.source else ''}: {self.why}"


@dataclass(eq=False)
class Call:
    """One operation that has run. All that a rule can do, it does by the methods of this class.

    op: the name of the operator, as in "aten::relu". func: the operator. shapes: one per output tensor.
    arguments: all arguments by the names of the schema, with `Operand`s for tensors; `raw`: the same with tensors.
    event: a function that makes an event at this operation from a reason, and returns the number of the event.

    The other fields collect what the rule says: counts, marks (with `widths`, those that only a smaller number of slots
    makes inexact), renumbered index lists, dimensions of heads, least numbers of slots, and positions.
    """

    op: str
    terms: Terms
    shapes: list[tuple[int, ...]]
    func: Any = None
    arguments: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    event: Callable[[str], int] = field(default=lambda why: STRUCTURE)
    counts: dict[str, tuple[Vector, ...]] = field(default_factory=dict)
    marks: list[tuple[int, Vector]] = field(default_factory=list)
    widths: set[int] = field(default_factory=set)
    renumbered: list[tuple[Operand, Vector]] = field(default_factory=list)
    attention: list[Vector] = field(default_factory=list)
    minima: list[tuple[Vector, int]] = field(default_factory=list)
    multiples: list[tuple[Vector, int, str]] = field(default_factory=list)
    positions: list[tuple[str, Any, Vector]] = field(default_factory=list)

    # -- vectors ------------------------------------------------------------------------------------------

    def same(self, a: Vector, b: Vector) -> None:
        """Tie two dimensions: slot i of `a` is removed exactly when slot i of `b` is."""
        if a is not b:
            self.terms.same(a, b)

    def fixed(self, size: int) -> Vector:
        """A new dimension that never loses slots."""
        return self.terms.fixed(size)

    def fresh(self, size: int) -> Vector:
        """A new dimension whose slots can be removed, until another rule ties or locks them."""
        return self.terms.fresh(size)

    def split(self, vector: Vector, sizes: Sequence[int]) -> list[Vector]:
        """Take a dimension apart into a grid; for sizes (h, d), slot i * d + j is removed if row i or column j is."""
        return self.terms.split(vector, sizes)

    def merge(self, vectors: Sequence[Vector]) -> Vector:
        """Flatten dimensions into one; the last one runs fastest, as in `torch.flatten`."""
        return self.terms.merge(vectors)

    def lock(self, vector: Vector, why: str) -> Vector:
        """Let no slot of a dimension be removed; the report says `why`. Returns the vector."""
        if not vector.fixed and len(self.terms.free(vector)):
            self.terms.lock(vector, self.event(why))
        return vector

    def fix(self, *vectors: Vector) -> None:
        """Lock dimensions that are no channels, such as the height of a kernel; the report does not mention them."""
        for vector in vectors:
            if not vector.fixed:
                self.terms.lock(vector, STRUCTURE)

    def mark(self, vector: Vector, why: str, *, width: bool = False) -> None:
        """Say that removing slots of a dimension changes a statistic. They can be removed, but that is inexact.

        width: True if the values are zero at removed slots, so that only the number of slots changes the statistic.
        """
        if not vector.fixed and len(self.terms.free(vector)):
            event = self.event(why)
            self.marks.append((event, vector))
            if width:
                self.widths.add(event)

    def position(self, argument: str, vector: Vector) -> None:
        """Say that an argument is a position in `vector` (a bound, an index, a shift); it is renumbered with it."""
        self.positions.append((argument, self.arguments[argument], vector))

    def least(self, vector: Vector, count: int) -> None:
        """Let at least `count` slots of a dimension stay."""
        if not vector.fixed:
            self.minima.append((vector, count))

    def multiple(self, vector: Vector, of: int, why: str) -> None:
        """Let the number of slots that stay be a multiple of a number."""
        if not vector.fixed and of > 1:
            self.multiples.append((vector, of, why))

    def heads(self, vector: Vector) -> None:
        """Say that attention runs once for each slot, a head; the other dimension of their grid is the head width."""
        if not vector.fixed:
            self.attention.append(vector)

    def count(self, argument: str, *vectors: Vector) -> None:
        """Say that an integer argument, or a list of integers, is the size of these dimensions."""
        self.counts[argument] = vectors

    def renumber(self, index: Operand, vector: Vector) -> None:
        """Say that the values of an integer tensor are positions in `vector`: they are renumbered with its slots."""
        self.renumbered.append((index, vector))

    # -- operands -----------------------------------------------------------------------------------------

    def operand(self, vectors: Sequence[Vector], zero: Sequence[bool] | bool = True) -> Operand:
        """An output with these vectors. zero: as in `Operand`, one flag for all dimensions or one for each."""
        zeros = tuple(zero) if not isinstance(zero, bool) else (zero,) * len(vectors)
        return Operand(tuple(vectors), tuple(z or self.held(v) for z, v in zip(zeros, vectors, strict=True)))

    def held(self, vector: Vector) -> bool:
        """True if no slot of a dimension can be removed any more; then it has no removed slots that are not zero."""
        return vector.fixed or (not vector.untouched and not len(self.terms.free(vector)))

    def constant(self, output: int = 0) -> Operand:
        """The operand of an output whose dimensions never change. output: the number of the output."""
        return self.operand([self.fixed(s) for s in self.shapes[output]])

    def refuse(self, operands: Sequence[Operand], why: str) -> list[Operand]:
        """Lock every dimension of these operands, and of all outputs; returns the outputs."""
        for operand in operands:
            for vector in operand.vectors:
                self.lock(vector, why)
        return [self.constant(i) for i in range(len(self.shapes))]


_RULES: dict[str, Rule] = {}
_PARAMETERS: dict[Rule, tuple[str, ...] | None] = {}
_LABELS: dict[Rule, str] = {}


def rule(*operations: Any, labels: str = "lock") -> Callable[[RuleT], RuleT]:
    """Register a rule for operations of ATen, or any registered operator. It is for all overloads, also in place.

    The rule is called with a `Call`, and with those arguments of the operation that are its parameters, by the names of
    the operator's schema; tensors come as `Operand`s. A rule with a parameter `*operands` gets all tensors. It returns
    the `Operand` of the output, a sequence of them if there are several outputs, None if there are none.

    labels: what happens to the `Operand.labels` of an argument. "keep": the outputs have them too, as for copies and
        moved data. "own": the rule looks after them itself. "lock", the default: the operation uses the numbers as
        numbers, so the dimension that they are positions in is locked.

    An operation has one rule: registering a second one raises `RuleError`.
    """
    names = [name_of(operation) for operation in operations]

    def register(function: RuleT) -> RuleT:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        for name in names:
            if name in _RULES:
                raise RuleError(
                    f"{name} has a rule already",
                    at=f"{_RULES[name].__module__}.{_RULES[name].__name__}",
                    do="register one rule for an operation",
                )
            _RULES[name] = function
        _PARAMETERS[function] = None if variadic else tuple(p.name for p in parameters)
        _LABELS[function] = labels
        return function

    return register


def rule_for(func: torch._ops.OpOverload) -> Rule | None:
    """The rule of an operation, None if it has none; `relu_` has that of `relu`."""
    name = func._schema.name
    return _RULES.get(name) or (_RULES.get(name[:-1]) if name.endswith("_") else None)


def registered() -> dict[str, Rule]:
    """Every rule by the name of its operation, sorted."""
    return dict(sorted(_RULES.items()))


def apply(function: Rule, call: Call, operands: Sequence[Operand]) -> list[Operand]:
    """Run a rule, and return its outputs. Raises `RuleError` if they have other shapes than the operation's results."""
    names = _PARAMETERS[function]
    labelled = [o.labels for o in operands if o.labels is not None] if _LABELS.get(function) != "own" else []
    if labelled and _LABELS.get(function, "lock") == "lock":
        for vector in labelled:
            call.lock(vector, "positions in this dimension are used as numbers")
        labelled = []
    for other in labelled[1:]:
        call.same(labelled[0], other)
    if names is None:
        made = function(call, *operands)
    else:
        made = function(call, **{name: call.arguments[name] for name in names})
    outputs = checked(call, [] if made is None else [made] if isinstance(made, Operand) else list(made))
    if len(operands) == 1 and _LABELS.get(function) == "keep":
        outputs = [_repeating(operands[0], made) for made in outputs]
    return [replace(o, labels=labelled[0]) for o in outputs] if labelled else outputs


def _repeating(operand: Operand, made: Operand) -> Operand:
    """The result of moving data, with the list of positions that it repeats, if the operand is one or repeats one."""
    listed = operand.listed or (operand if _is_kept_list(operand) else None)
    if listed is None or [v for v in made.vectors if v is listed.dim(0)] != [listed.dim(0)]:
        return made
    return replace(made, listed=listed)


def _is_kept_list(operand: Operand) -> bool:
    """True if an operand is a list of constant positions in a tensor of the model, which can be renumbered."""
    return operand.ndim == 1 and not operand.dim(0).fixed and integers(operand) is not None


def kept_list(index: Operand, dim: int = 0) -> Operand | None:
    """The list of constant positions that an index consists of along one of its dimensions; None if there is none.

    The list is a tensor of the model, which can be renumbered. Along its other dimensions the index repeats it.
    """
    listed = index if _is_kept_list(index) else index.listed
    return listed if listed is not None and index.dim(dim) is listed.dim(0) else None


def checked(call: Call, outputs: list[Operand]) -> list[Operand]:
    """The outputs of a rule. Raises `RuleError` if they have other shapes than the operation's results."""
    shapes = [o.shape for o in outputs]
    if shapes != call.shapes:
        raise RuleError(
            f"the rule of {call.op} contradicts the operation",
            why=f"it promises shapes {shapes}, the operation made {call.shapes}",
            do="report this; `fxprune.rule` must return one vector per dimension of every output",
        )
    return outputs


def name_of(operation: Any) -> str:
    """The name of an operation, "aten::relu", from the overload, the packet of overloads, or the name itself."""
    if isinstance(operation, str):
        return operation
    if isinstance(operation, torch._ops.OpOverload):
        return str(operation._schema.name)
    if isinstance(operation, torch._ops.OpOverloadPacket):
        return str(operation._qualified_op_name)
    raise RuleError(
        "a rule needs an operator",
        why=f"{operation!r} is neither an OpOverload nor an OpOverloadPacket nor a name",
        do="write for example `torch.ops.aten.relu` or `torch.ops.mylib.myop`",
    )


def integers(operand: Operand | None) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """The values of a constant integer operand as a flat array, None where they are not known."""
    if operand is None or operand.value is None or operand.value.is_floating_point():
        return None
    with unset_fake_temporarily():
        return operand.value.detach().cpu().reshape(-1).to(torch.int64).numpy()
