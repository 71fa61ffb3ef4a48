"""The operations of a run in order, and the tensors that each of them reads and makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from fxprune.capture.layouts import memory_of
from fxprune.capture.scopes import ATTENTION, Key, Scope
from fxprune.capture.values import tensors_in
from fxprune.ops.factors import Value, values_in

ATEN_ATTENTION = f"aten::{ATTENTION}"
MOST_POSITIONS = 1024
"""The numbers of a longer list of positions are not looked at."""


@dataclass(frozen=True, eq=False)
class Step:
    """One operation.

    key: as in `Observation.outputs`. name: of the operation; "" if nothing is known of it. func: the operator, None
        where several run. raw: its arguments by name, with a `Value` for each tensor. made: its results.
    event: the number of the event that names its place. scope: the innermost one that was running; None for what no
        operation did, the new value of a tensor whose memory was written to.
    """

    key: Key
    name: str
    func: Any
    raw: Mapping[str, Any]
    made: tuple[Value, ...]
    event: int
    scope: Scope | None = None

    @property
    def read(self) -> list[Value]:
        """Every tensor among the arguments, in order."""
        return [value for argument in self.raw.values() for value in values_in(argument)]


@dataclass(frozen=True, eq=False)
class OneRun:
    """One run of forward: its inputs in order, its operations, and the tensors that leave it."""

    given: Sequence[Value] = ()
    done: Sequence[Step] = ()
    results: Sequence[Value] = ()


@dataclass(frozen=True, eq=False)
class Steps:
    """All operations of all runs.

    done: the operations in order. results: the tensors that leave the model. main: the run on the first example inputs.
    whole: False if an operation read numbers that none of them made, such as those that forward computed by NumPy. One
        number alone is taken for one in the code of the model.
    """

    done: Sequence[Step] = ()
    results: frozenset[Value] = frozenset()
    whole: bool = True
    main: OneRun = field(default_factory=OneRun)


class StepRecorder:
    """Records the operations of a run. An operation in place makes a new `Value` for its tensor.

    A tensor that shares memory with one that was written to is read as a result of all that was known of this memory.
    """

    def __init__(self) -> None:
        self._done: list[Step] = []
        self._results: set[Value] = set()
        self._known: dict[int, tuple[torch.Tensor, Value, int]] = {}
        self._writes: dict[int, int] = {}
        self._memory: dict[int, list[Value]] = {}
        self._whole = True
        self._given: list[Value] = []
        self._left: list[Value] = []
        self._begun = 0
        self._main = OneRun()

    def begin_run(self) -> None:
        """Say that another run begins."""
        self._given, self._left, self._begun = [], [], len(self._done)

    def keep_run(self) -> None:
        """Say that the run which has ended is the one on the first example inputs, unless another one is kept later."""
        self._main = OneRun(tuple(self._given), tuple(self._done[self._begun :]), tuple(self._left))

    def forget(self) -> None:
        """Forget all operations but those of the run that is kept."""
        self._done, self._results = [], set()

    def steps(self) -> Steps:
        """Everything that was recorded."""
        return Steps(tuple(self._done), frozenset(self._results), self._whole, self._main)

    def name(self, tensor: torch.Tensor, name: str) -> None:
        """Say that a tensor is a parameter or buffer of the model."""
        self._new(tensor, name)

    def given(self, tensors: Iterable[torch.Tensor]) -> None:
        """Say that tensors are inputs."""
        self._given += map(self._new, tensors)

    def result(self, tensors: Iterable[torch.Tensor]) -> None:
        """Say that tensors leave the model."""
        self._left += map(self._value, tensors)
        self._results.update(self._left)

    def record(
        self, key: Key, func: Any, raw: Mapping[str, Any], made: Sequence[torch.Tensor], event: int, scope: Scope
    ) -> None:
        """Record an operation that has run."""
        if "|" in key[0] and key[0].rpartition("|")[2] == ATTENTION:
            return  # it is recorded as one, see `attention`
        self._step(key, func._schema.name, func, raw, made, event, scope)

    def attention(self, key: Key, raw: Mapping[str, Any], made: Any, event: int, scope: Scope) -> None:
        """Record a call of `scaled_dot_product_attention`, whatever operations it consists of."""
        self._step(key, ATEN_ATTENTION, None, raw, tensors_in(made), event, scope)

    def opaque(
        self, key: Key, read: Sequence[torch.Tensor], made: Sequence[torch.Tensor], event: int, scope: Scope
    ) -> None:
        """Record a module that is treated as one operation."""
        self._step(key, "", None, {"tensors": list(read)}, made, event, scope)

    def _step(
        self,
        key: Key,
        name: str,
        func: Any,
        raw: Mapping[str, Any],
        made: Sequence[torch.Tensor],
        event: int,
        scope: Scope,
    ) -> None:
        arguments = {argument: self._converted(value) for argument, value in raw.items()}
        given = {id(t) for value in raw.values() for t in (value if isinstance(value, (list, tuple)) else (value,))}
        written = [t for t in made if id(t) in given] if func is None or func._schema.is_mutable else []
        for tensor in written:
            memory = memory_of(tensor)
            self._writes[memory] = self._writes.get(memory, 0) + 1
        positions = arguments["self"].positions if name == "aten::lift_fresh" else None
        results = tuple(
            self._new(t, positions=positions) if id(t) not in given or any(t is w for w in written) else self._value(t)
            for t in made
        )
        self._done.append(Step(key, name, func, arguments, results, event, scope))

    def _converted(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._value(value)
        if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
            return [self._value(v) if isinstance(v, torch.Tensor) else v for v in value]
        return value

    def _value(self, tensor: torch.Tensor) -> Value:
        known = self._known.get(id(tensor))
        if known is None:
            self._whole = self._whole and (not tensor.is_floating_point() or tensor.numel() < 2)
            return self._new(tensor)
        memory = memory_of(tensor)
        if known[2] == self._writes.get(memory, 0):
            return known[1]
        before = tuple(self._memory.get(memory, ()))
        made = self._new(tensor)
        self._done.append(Step(("", 0, "", 0), "", None, {"tensors": list(before)}, (made,), 0))
        return made

    def _new(self, tensor: torch.Tensor, name: str | None = None, positions: tuple[int, ...] | None = None) -> Value:
        memory = memory_of(tensor)
        value = Value(tuple(tensor.shape), tensor.dtype, name, _number(tensor), positions or _positions(tensor))
        self._known[id(tensor)] = (tensor, value, self._writes.get(memory, 0))
        self._memory.setdefault(memory, []).append(value)
        return value


def _number(tensor: torch.Tensor) -> float | None:
    """The number of a tensor that forward made of one, None for other tensors."""
    if type(tensor) is not torch.Tensor or tensor.ndim or tensor.device.type != "cpu" or tensor.is_complex():
        return None
    with unset_fake_temporarily():
        return float(tensor)


def _positions(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The numbers of a list of positions that forward made, None for other tensors, and where they are not known."""
    if tensor.ndim != 1 or tensor.dtype != torch.int64 or tensor.numel() > MOST_POSITIONS:
        return None
    known = tensor.constant if isinstance(tensor, FakeTensor) else tensor
    with unset_fake_temporarily():
        return None if known is None else tuple(known.tolist())
