"""The registry of rules, and what a rule may do.

A rule says how the output's vectors of one ATen operation follow from its inputs', which vectors must be the
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
    zero: per dimension, whether the elements at its removed slots are zero in the masked reference. It decides
        whether a sum over the dimension is exact.
    value: the numbers of an integer tensor that does not depend on the inputs (an index list), else None.
    labels: the dimension in which the tensor's numbers are positions (which experts a router chose), else None. They
        follow its numbering: what uses them as mere numbers locks it.
    """

    vectors: tuple[Vector, ...]
    zero: tuple[bool, ...]
    value: torch.Tensor | None = None
    labels: Vector | None = None

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
        return f"{self.op} in {self.module or 'the model'} ({self.source}): {self.why}"


@dataclass(eq=False)
class Call:
    """One observed operation: what a rule works with. Its methods are all the effects a rule can have.

    op: the operator's name, as in "aten::relu".
    shapes: one per output tensor.
    arguments: by the names of the schema, defaults filled in, tensors as `Operand`s; `raw`: the same with tensors.
    event: makes an event of this operation's place and a reason, and returns its number.
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
    positions: list[tuple[str, Any, Vector]] = field(default_factory=list)

    # -- vectors ------------------------------------------------------------------------------------------

    def same(self, a: Vector, b: Vector) -> None:
        """Slot i of `a` is removed exactly when slot i of `b` is."""
        if a is not b:
            self.terms.same(a, b)

    def fixed(self, size: int) -> Vector:
        """A dimension that never changes."""
        return self.terms.fixed(size)

    def fresh(self, size: int) -> Vector:
        """A dimension whose slots are free until something holds them."""
        return self.terms.fresh(size)

    def split(self, vector: Vector, sizes: Sequence[int]) -> list[Vector]:
        """Take a dimension apart: slot h * d + j is removed when row h or column j is."""
        return self.terms.split(vector, sizes)

    def merge(self, vectors: Sequence[Vector]) -> Vector:
        """Flatten dimensions into one, the last running fastest."""
        return self.terms.merge(vectors)

    def lock(self, vector: Vector, why: str) -> Vector:
        """No slot may be removed, and the report says `why`. Returns the vector, for chaining."""
        if not vector.fixed and len(self.terms.free(vector)):
            self.terms.lock(vector, self.event(why))
        return vector

    def fix(self, *vectors: Vector) -> None:
        """These dimensions are no channels (a kernel's height); locked without a word in the report."""
        for vector in vectors:
            if not vector.fixed:
                self.terms.lock(vector, STRUCTURE)

    def mark(self, vector: Vector, why: str, *, width: bool = False) -> None:
        """Removing slots changes a statistic: allowed, but not equal to setting them to zero.

        width: only because fewer slots are counted, since what the statistic is taken over is zero at removed ones.
        """
        if not vector.fixed and len(self.terms.free(vector)):
            event = self.event(why)
            self.marks.append((event, vector))
            if width:
                self.widths.add(event)

    def position(self, argument: str, vector: Vector) -> None:
        """The argument is a position in `vector` (a bound, an index, a shift), and follows its new numbering."""
        self.positions.append((argument, self.arguments[argument], vector))

    def least(self, vector: Vector, count: int) -> None:
        """At least `count` slots must stay."""
        if not vector.fixed:
            self.minima.append((vector, count))

    def heads(self, vector: Vector) -> None:
        """Attention runs once for each slot: they are called heads, and what else their grid has is head width."""
        if not vector.fixed:
            self.attention.append(vector)

    def count(self, argument: str, *vectors: Vector) -> None:
        """The integer argument (or list of integers) `argument` is the size of these dimensions."""
        self.counts[argument] = vectors

    def renumber(self, index: Operand, vector: Vector) -> None:
        """The values of the integer tensor `index` are positions in `vector` and follow its new numbering."""
        self.renumbered.append((index, vector))

    # -- operands -----------------------------------------------------------------------------------------

    def operand(self, vectors: Sequence[Vector], zero: Sequence[bool] | bool = True) -> Operand:
        """An output with these vectors; `zero` as in `Operand`, one value for all or one each."""
        zeros = tuple(zero) if not isinstance(zero, bool) else (zero,) * len(vectors)
        return Operand(tuple(vectors), tuple(z or self.held(v) for z, v in zip(zeros, vectors, strict=True)))

    def held(self, vector: Vector) -> bool:
        """True if no slot can be removed any more, so that removed slots carry nothing."""
        return vector.fixed or (not vector.untouched and not len(self.terms.free(vector)))

    def constant(self, output: int = 0) -> Operand:
        """An output none of whose dimensions can change."""
        return self.operand([self.fixed(s) for s in self.shapes[output]])

    def refuse(self, operands: Sequence[Operand], why: str) -> list[Operand]:
        """Lock every channel that enters, and everything that leaves."""
        for operand in operands:
            for vector in operand.vectors:
                self.lock(vector, why)
        return [self.constant(i) for i in range(len(self.shapes))]


_RULES: dict[str, Rule] = {}
_PARAMETERS: dict[Rule, tuple[str, ...] | None] = {}
_LABELS: dict[Rule, str] = {}


def rule(*operations: Any, labels: str = "lock") -> Callable[[RuleT], RuleT]:
    """Register a rule for ATen operations (or any registered operator), all overloads, in place and `out=` too.

    The rule is called with a `Call` and with those arguments of the operation that it names, spelled as in the
    operator's schema; tensors come as `Operand`s. It returns the output's `Operand`, a sequence of them where
    there are several outputs, or None where there is none. A rule that takes `*operands` gets all tensors.

    labels: what becomes of `Operand.labels` of an input: "keep" hands them on to the outputs (movements, copies), "own"
        leaves them to the rule; by default the numbers are used as such, which locks the dimension that they label.

    An operation has one rule: registering a second one raises `RuleError`.
    """
    names = [name_of(operation) for operation in operations]

    def register(function: RuleT) -> RuleT:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        for name in names:
            if name in _RULES:
                raise RuleError(f"{name} has a rule already", at=f"{_RULES[name].__module__}.{_RULES[name].__name__}")
            _RULES[name] = function
        _PARAMETERS[function] = None if variadic else tuple(p.name for p in parameters)
        _LABELS[function] = labels
        return function

    return register


def rule_for(func: torch._ops.OpOverload) -> Rule | None:
    """The rule of an operation; `relu_` has that of `relu`."""
    name = func._schema.name
    return _RULES.get(name) or (_RULES.get(name[:-1]) if name.endswith("_") else None)


def registered() -> dict[str, Rule]:
    """Every rule by the name of its operation, sorted."""
    return dict(sorted(_RULES.items()))


def apply(function: Rule, call: Call, operands: Sequence[Operand]) -> list[Operand]:
    """Run a rule and check that what it promises has the shapes that the operation made."""
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
    return [replace(o, labels=labelled[0]) for o in outputs] if labelled else outputs


def checked(call: Call, outputs: list[Operand]) -> list[Operand]:
    """Returns the promises of a rule, if they have the shapes that the operation made."""
    shapes = [o.shape for o in outputs]
    if shapes != call.shapes:
        raise RuleError(
            f"the rule of {call.op} contradicts the operation",
            why=f"it promises shapes {shapes}, the operation made {call.shapes}",
            do="report this; `fxprune.rule` must return one vector per dimension of every output",
        )
    return outputs


def name_of(operation: Any) -> str:
    """The qualified name of an operation, its packet, or its name itself."""
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
