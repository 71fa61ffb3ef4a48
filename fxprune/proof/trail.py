"""Trails of runs: a digest of the result of every operation, and the fractions that it was called with.

The reference leaves its trail first, at the slots that are kept. Then the small model runs, and each of its results is
compared at once. So no tensor is stored, and only one of the two models is in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fxprune.analysis.arguments import bound, numbers_of
from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Observation
from fxprune.analysis.scale_factors import ScaleFactors
from fxprune.capture.layouts import memory_of
from fxprune.capture.places import users_line
from fxprune.capture.scopes import Key, Scope
from fxprune.capture.values import tensors_in
from fxprune.channels.groups import Bools, Removal
from fxprune.ops import Operand
from fxprune.ops.leaves import leaf_rule
from fxprune.proof.decisions import Decisions
from fxprune.proof.digests import Digest, Digester
from fxprune.proof.kept_statistics import KeptStatistics, NextCall
from fxprune.proof.norm_inputs import DIVIDING, NormInputs
from fxprune.proof.operations import Operations
from fxprune.proof.quotients import QUOTIENTS, settle

OperationRuns = tuple[str, int, str]
"""All operations of one name in one run of a scope: a `Key` without its last part."""


@dataclass(frozen=True)
class ProofStep:
    """One operation of a run.

    digests: of its floating results, None for one that cannot be compared.
    decision: the digest of integers or flags that it made from floating numbers, None if it made none.
    numbers: the fractions that it was called with.
    depends: True if its results depend on what was removed.
    source: the user's line that called it, "" where nothing differs.
    """

    digests: tuple[Digest | None, ...] = ()
    decision: Digest | None = None
    numbers: tuple[float, ...] = ()
    depends: bool = False
    source: str = ""


@dataclass(frozen=True)
class Trail:
    """The operations of a run, in order.

    steps: key of an operation -> what is known of it.
    calls: how often each operation ran, also those that are not compared.
    settled: the quotients of the reference that were no numbers at removed slots.
    """

    steps: dict[Key, ProofStep] = field(default_factory=dict)
    calls: Counter[OperationRuns] = field(default_factory=Counter)
    settled: list[Key] = field(default_factory=list)


class TrailRecorder(Operations):  # type: ignore[no-untyped-call]
    """A dispatch mode that writes the trail of a run.

    Args:
        removal: the removed channels.
        digester: the same for both runs.
        observations: what the analysis has seen in the mode of this run.
        factors: the factors that the results of the small model have.
        skipped: the scopes whose operations are others in the small model: of replaced layers, and of statistics that
            count the original width.
        statistics: for the reference, computes the operations that take a statistic; None if no statistic changes.
        before: for the small model, the trail of the reference.
        changed: the names of the parameters and buffers of the small model that are others than in the original.
        tolerance: a relative error up to this is rounding.
        digests: False to note fractions only.
        decisions: those that the reference takes and the small model follows; None if each decides for itself.
        norm_inputs: the numbers that enter norms, likewise.
        quotients: True for a reference with quotients that have removed slots.
    """

    def __init__(
        self,
        findings: Findings,
        removal: Removal,
        digester: Digester,
        *,
        observations: Mapping[str, Observation],
        factors: ScaleFactors,
        skipped: frozenset[str] = frozenset(),
        statistics: KeptStatistics | None = None,
        before: Trail | None = None,
        changed: frozenset[str] = frozenset(),
        tolerance: float = 0.0,
        digests: bool = True,
        decisions: Decisions | None = None,
        norm_inputs: NormInputs | None = None,
        quotients: bool = False,
    ) -> None:
        super().__init__(findings, observations)
        self.quotients = quotients
        self.factors, self._multiplied = factors, {key[0] for key in factors.results}
        self.removal, self.digester, self.skipped = removal, digester, skipped
        self.statistics, self.before, self.changed, self.tolerance = statistics, before, changed, tolerance
        self.digests, self.decisions, self.norm_inputs, self.trail = digests, decisions, norm_inputs, Trail()
        self.scopes.on_attention = self._attended
        self.scopes.on_composite, self.scopes.on_leave = self._composed, self._left
        self._tainted: dict[int, Any] = {}  # what keeps the number of a memory from being used twice

    def for_next_call(self) -> Operations | None:
        """The statistics and quotients of the next call, and its norms; its operations leave no trail."""
        if self.statistics is None and self.norm_inputs is None and not self.quotients:
            return None
        return NextCall(self.findings, self.observations, self.statistics, self._entering_norm, self._settle)

    # -- what depends on the removal ----------------------------------------------------------------------

    def made(self, tensor: torch.Tensor, name: str) -> None:
        """Note the copy of a parameter or buffer."""
        if name in self.changed:
            self._taint(tensor)

    def _taint(self, tensor: torch.Tensor) -> None:
        memory = memory_of(tensor)
        if memory not in self._tainted:
            self._tainted[memory] = tensor if memory < 0 else _reference(tensor)

    def depends(self, value: Any) -> bool:
        """True if a nested value depends on what was removed."""
        return self._any_tainted(_flat(value))

    def _any_tainted(self, tensors: list[torch.Tensor]) -> bool:
        return any(memory_of(t) in self._tainted for t in tensors)

    # -- operations ---------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        scope = self.scopes.current
        name, named = bound(func, args, kwargs)
        key = scope.next_key(name)
        entry = self.observation.marked.get(key) if self.statistics is not None else None
        entering = _operands(args, kwargs)
        depends = self.before is not None and self._any_tainted(entering)
        args = self._entering_norm(self.observation, key, func, args)
        if entry is None or self.statistics is None:
            made = func(*args, **kwargs)
        else:
            made = self.statistics.call(entry, func, args, kwargs)
        self._settle(self.observation, key, made)
        if self.decisions is not None:
            if self.before is None:
                self.decisions.take(key, func, args, kwargs, made)
            else:
                made = self.decisions.follow(key, func, args, kwargs, made)
        if depends:
            for tensor in _flat(made):
                self._taint(tensor)
        self.trail.calls[key[:3]] += 1
        if not scope.depends_on_sizes and scope.path not in self.skipped:
            numbers = numbers_of(name, named)
            floating = any(t.is_floating_point() or t.is_complex() for t in entering)
            self._add(key, made, numbers, floating=floating and not _holds_nothing_new(func), depends=depends)
        return made

    def _entering_norm(self, observation: Observation, key: Key, func: Any, args: Any) -> Any:
        """The arguments of an operation: of a norm of the small model with those of the reference, see `NormInputs`."""
        if self.norm_inputs is None or func._schema.name not in DIVIDING:
            return args
        if self.before is not None:
            return self.norm_inputs.follow(key, func, args)
        operands = observation.outputs.get(key)
        if operands and (kept := self._kept(args[0], operands[0])) is not None:
            self.norm_inputs.take(key, args[0], kept)
        return args

    def _settle(self, observation: Observation, key: Key, made: Any) -> None:
        """Set removed slots of a quotient of the reference to zero that are no numbers."""
        if not self.quotients or key[2] not in QUOTIENTS:
            return
        operands = observation.outputs.get(key)
        if operands and (kept := self._kept(made, operands[0])) is not None and settle(made, kept):
            self.trail.settled.append(key)

    def _composed(self, key: Key, made: Any, numbers: tuple[float, ...] = ()) -> None:
        self.trail.calls[key[:3]] += 1
        if "|" not in key[0] and self.scopes.current.path not in self.skipped:
            inside = f"{key[0]}|{key[2].removesuffix('()')}"
            with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # digests are no part of the run
                self._add(key, made, numbers, floating=inside not in self._multiplied, depends=self.depends(made))

    def _left(self, scope: Scope, args: Any, kwargs: Any, made: Any) -> None:
        """A module returns: if it is a leaf, it is one operation for the analysis."""
        if leaf_rule(scope.module) is not None and not any(leaf_rule(outer.module) for outer in self.scopes.stack):
            key = self.scopes.current.next_key(type(scope.module).__name__)
            if self.before is None or scope.path not in self.skipped or key[:3] in self.before.calls:
                self._composed(key, made)  # else it is the layer that stands for one which the original has

    def _attended(self, key: Key, named: dict[str, Any], made: Any) -> None:
        self._composed(key, made, (float(named["scale"]),))

    def _add(self, key: Key, made: Any, numbers: tuple[float, ...], *, floating: bool, depends: bool) -> None:
        """Add the step of an operation. floating: True if a floating tensor enters it, and its results are no views."""
        digests: list[Digest | None] = []
        decision = None
        if floating and self.digests:
            tensors = list(_flat(made))
            operands = self.observation.outputs.get(key, [])
            known: list[Operand | None] = list(operands) if len(operands) == len(tensors) else [None] * len(tensors)
            carried = self.factors.results.get(key, ()) if self.before is None else ()
            if carried and not _fit(carried, tensors):
                known = [None] * len(tensors)  # of some elements nothing is known
                carried = ()
            for number, (tensor, operand) in enumerate(zip(tensors, known, strict=True)):
                if carried and operand is not None and (tensor.is_floating_point() or tensor.is_complex()):
                    with torch._C._DisableTorchDispatch():
                        tensor = tensor * carried[number].to(tensor)
                digest = self._digest(tensor, operand)
                if tensor.is_floating_point() or tensor.is_complex():
                    digests.append(digest)
                elif operand is not None and operand.labels is None:
                    decision = digest
        step = ProofStep(tuple(digests), decision, numbers, depends)
        other = self.before.steps.get(key) if self.before is not None else None
        if other is not None and (differs(step, other) > self.tolerance or step.numbers != other.numbers):
            step = ProofStep(step.digests, decision, numbers, depends, users_line())
        self.trail.steps[key] = step

    def _digest(self, tensor: torch.Tensor, operand: Operand | None) -> Digest | None:
        """The digest of a result: for the reference at the kept slots, None if these are not known.

        None for a tensor without numbers too: torch computes the sizes of tangents on the meta device.
        """
        if tensor.is_meta:
            return None
        if self.before is not None:
            return self.digester.digest(tensor)
        kept = self._kept(tensor, operand)
        return None if kept is None else self.digester.digest(tensor, kept, norm=False)

    def _kept(self, tensor: torch.Tensor, operand: Operand | None) -> list[Bools | None] | None:
        """The kept slots of each dimension of a tensor of the reference, None if they are not known."""
        if operand is None or len(operand.vectors) != tensor.ndim:
            return None
        kept = [self.removal.kept(vector) for vector in operand.vectors]
        if any(flags is not None and len(flags) != size for flags, size in zip(kept, tensor.shape, strict=True)):
            return None
        return kept


def _fit(factors: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> bool:
    """True if the factors of the results of an operation are known, and those of such tensors.

    Another method, or another mode, may run the operation on inputs of other sizes than forward does.
    """
    if len(factors) != len(tensors) or any(bool(factor.isnan().any()) for factor in factors):
        return False
    each = zip(factors, tensors, strict=True)
    return all(
        f.ndim <= t.ndim and all(size in (1, of) for size, of in zip(f.shape[::-1], t.shape[::-1], strict=False))
        for f, t in each
    )


def differs(step: ProofStep, reference: ProofStep) -> float:
    """The largest error of the floating results of an operation; 0.0 for those that cannot be compared."""
    return max(errors_of(step, reference, step), default=0.0)


def errors_of(step: ProofStep, reference: ProofStep, small: ProofStep) -> list[float]:
    """The errors of the floating results of an operation, relative to the numbers of the small model.

    0.0 for one that cannot be compared; none at all where the steps have unequally many.
    """
    if not len(step.digests) == len(reference.digests) == len(small.digests):
        return []
    return [
        0.0 if a is None or b is None or scale is None else a.error(b, scale.norm)
        for a, b, scale in zip(step.digests, reference.digests, small.digests, strict=True)
    ]


def _operands(args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The tensors among the arguments of an operation: such an argument is a tensor or a list of tensors."""
    found: list[torch.Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [part for part in value if isinstance(part, torch.Tensor)]
    return found


def _flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else tensors_in(value)


_KNOWN: dict[Any, bool] = {}


def _holds_nothing_new(func: Any) -> bool:
    """True if the result has no numbers of its own: it is a view of an argument, or was not written yet."""
    if func not in _KNOWN:
        infos = [r.alias_info for r in func._schema.returns]
        made_up = "empty" in func._schema.name or func._schema.name == "aten::resize_"  # whatever the memory holds
        _KNOWN[func] = made_up or (bool(infos) and all(info is not None and not info.is_write for info in infos))
    return _KNOWN[func]


def _reference(tensor: torch.Tensor) -> StorageWeakRef:
    """A weak reference to the memory of a tensor."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
