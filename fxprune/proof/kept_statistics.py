"""The reference for removals that change a statistic: only the kept slots enter the statistic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from fxprune.analysis.arguments import bound
from fxprune.analysis.findings import Findings
from fxprune.analysis.observed import Observation
from fxprune.capture.scopes import Key
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.ops import Call, Operand
from fxprune.proof.operations import Operations


class KeptStatistics:
    """Computes operations that take a statistic over removed slots from the kept slots only.

    The inputs of such an operation are reduced to the kept slots, and its result is filled up with zeros to the old
    size.
    """

    def __init__(self, removal: Removal) -> None:
        self.removal = removal

    def call(self, entry: tuple[Call, list[Operand]], func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation. entry: the call as the analysis has seen it, and its results there."""
        call, outputs = entry
        if call.op != func._schema.name:
            return func(*args, **kwargs)
        names = [a.name for a in func._schema.arguments]
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
        cut = {name: self._cut(value, call.arguments.get(name)) for name, value in bound.items()}
        for name, vectors in call.counts.items():
            if name in cut:
                sizes = self.removal.shape(vectors)
                cut[name] = list(sizes) if isinstance(bound[name], (list, tuple)) else sizes[0]
        if "scale" in names and bound.get("scale") is None and "query" in bound:  # as computed from the original width
            cut["scale"] = bound["query"].shape[-1] ** -0.5
        positional = [cut.pop(name) for name in names[: len(args)]]
        made = func(*positional, **cut)
        tensors = [made] if isinstance(made, torch.Tensor) else list(made)
        back = [self._put_back(t, o) for t, o in zip(tensors, outputs, strict=True)]
        if func._schema.name.endswith("_"):
            return args[0].copy_(back[0])
        return back[0] if isinstance(made, torch.Tensor) else type(made)(back)

    def fits(self, call: Call, named: Mapping[str, Any]) -> bool:
        """True if the tensors among some arguments have the widths of those of a call."""
        operands = {name: operand.vectors for name, operand in call.arguments.items() if isinstance(operand, Operand)}
        shapes = {name: value.shape for name, value in named.items() if isinstance(value, torch.Tensor)}
        return operands.keys() == shapes.keys() and all(
            len(shape) == len(operands[name])
            and all(shape[dim] == operands[name][dim].size for dim, _ in self._kept(operands[name]))
            for name, shape in shapes.items()
        )

    def _kept(self, vectors: tuple[Vector, ...]) -> list[tuple[int, torch.Tensor]]:
        pairs = ((d, self.removal.kept(v)) for d, v in enumerate(vectors))
        return [(d, torch.from_numpy(np.flatnonzero(kept))) for d, kept in pairs if kept is not None]

    def _cut(self, value: Any, operand: Any) -> Any:
        if isinstance(value, torch.Tensor) and isinstance(operand, Operand):
            for dim, index in self._kept(operand.vectors):
                value = value.index_select(dim, index.to(value.device))
        return value

    def _put_back(self, value: torch.Tensor, operand: Operand) -> torch.Tensor:
        kept = None if operand.labels is None else self.removal.kept(operand.labels)
        if kept is not None:  # from positions among the kept slots to positions among all
            value = torch.from_numpy(np.flatnonzero(kept)).to(value.device)[value]
        for dim, index in self._kept(operand.vectors):
            shape = list(value.shape)
            shape[dim] = operand.vectors[dim].size
            value = value.new_zeros(shape).index_copy_(dim, index.to(value.device), value)
        return value


class NextCall(Operations):  # type: ignore[no-untyped-call]
    """A dispatch mode for one more call: that of the reference takes statistics from the kept slots, settles quotients.

    The analysis has seen the first call only. An operation of the next call is the same one if it runs at the same
    place and its tensors have the same widths. Other sizes may differ: a cache has grown.

    statistics: None if no statistic changes.
    entering_norm: a function from what the analysis has seen of a node, the key of an operation, the operation and its
        arguments, to the arguments that it gets.
    settle: called with what the analysis has seen of a node, the key of an operation and its result.
    """

    def __init__(
        self,
        findings: Findings,
        observations: Mapping[str, Observation],
        statistics: KeptStatistics | None,
        entering_norm: Callable[[Observation, Key, Any, Any], Any],
        settle: Callable[[Observation, Key, Any], None],
    ) -> None:
        super().__init__(findings, observations)
        self.statistics, self.entering_norm, self.settle = statistics, entering_norm, settle

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        name, named = bound(func, args, kwargs)
        key = self.scopes.current.next_key(name)
        args = self.entering_norm(self.observation, key, func, args)
        entry = self.observation.marked.get(key)
        if self.statistics is None or entry is None or not self.statistics.fits(entry[0], named):
            made = func(*args, **kwargs)
        else:
            made = self.statistics.call(entry, func, args, kwargs)
        self.settle(self.observation, key, made)
        return made
