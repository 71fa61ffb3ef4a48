"""Proof by numbers: the small model against the masked reference.

The reference is the original with every removed slot of every parameter and buffer set to zero. For groups whose
removal changes a statistic that is not what "the channel never existed" means; there the operations that take the
statistic see only the kept slots, and everything else is as before.

Both run node by node with one layer's parameters in float64 at a time, so that the proof needs little memory and
is as sharp for float16 weights as for float64 ones.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.findings import Findings
from fxprune.analysis.observer import bound, numbers_of
from fxprune.capture.captured import fetch
from fxprune.capture.inputs import Inputs
from fxprune.capture.process_state import clean_caches
from fxprune.capture.scopes import Key, Scopes
from fxprune.capture.values import tensors_in
from fxprune.channels.groups import Removal
from fxprune.channels.vector import Vector
from fxprune.errors import PlanError, nearest
from fxprune.ops import Operand
from fxprune.proof.float64 import NOTHING, Operations, Precise, deterministic, doubled, zero_slots

TOLERANCE = 1e-9


def masked(model: nn.Module, removed: Mapping[str, Mapping[int, Any]]) -> nn.Module:
    """The masked reference: a deep copy with every removed slot of every parameter and buffer set to zero.

    Args:
        removed: parameter or buffer name -> {dimension: indices}, as in `Plan.removed` and `record(small).removed`.

    >>> import torch, fxprune
    >>> net = torch.nn.Linear(2, 3)
    >>> fxprune.masked(net, {"bias": {0: [1]}}).bias[1].item()
    0.0
    """
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, dims in removed.items():
            try:
                tensor = fetch(copied, name)
            except AttributeError:
                raise PlanError(
                    f'the model has no parameter "{name}"',
                    why=nearest(name, [n for n, _ in model.named_parameters()]),
                    do="use the model that the plan was made for",
                ) from None
            zero_slots(tensor, dims)
    return copied


def relative_error(small: Any, reference: Any) -> float:
    """max |small - reference| / max |reference| over all tensors of two equal structures; inf where one is NaN."""
    ours, theirs = tensors_in(small), tensors_in(reference)
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if not a.numel():
            continue
        a, b = a.to(torch.float64), b.to(torch.float64)
        scale = float(b.abs().max())
        error = float((a - b).abs().max()) / (scale or 1.0)
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def compare(
    findings: Findings,
    small: nn.Module,
    removal: Removal,
    zeroed: Mapping[str, Any],
    exact: Mapping[str, torch.Tensor] | None = None,
) -> float:
    """The relative error of `small` against its reference, both in float64 and evaluation mode, on all inputs.

    Args:
        zeroed: what the reference sets to zero: what was removed, or less where constants were folded.
        exact: parameters of `small` that are new numbers, before they were rounded to their type.
    """
    every = (findings.inputs, *findings.subject.more)
    with clean_caches(findings.model):
        return max(_compare(findings, small, removal, zeroed, exact or {}, inputs) for inputs in every)


def _compare(
    findings: Findings,
    small: nn.Module,
    removal: Removal,
    removed: Mapping[str, Any],
    exact: Mapping[str, torch.Tensor],
    inputs: Inputs,
) -> float:
    with deterministic():
        values = findings.captured.values(inputs)
        graph = small.graph if isinstance(small, fx.GraphModule) else findings.captured.graph
        numbers = (_Numbers(), _Numbers()) if findings.captured.real else (None, None)
        try:
            reference = _reference(findings, removal, removed, values, numbers[0])
        except Exception as error:
            if (findings.inexact & removal.removed).any() and _runs(findings, values):
                return float("inf")  # it is the reference that cannot be made
            text = str(error).strip().splitlines()
            raise IncomparableError(f"{type(error).__name__}: {text[0] if text else ''}") from error
        try:
            ours = Precise(graph, small, {}, None, exact, numbers[1]).run(*doubled(values))
        except Exception:
            return float("inf")  # what the original can do in float64, the small one must
        if numbers[0] is not None and numbers[1] is not None and not numbers[0].agrees(numbers[1]):
            return float("inf")  # a scale that follows a width, although these inputs may not show it
        return relative_error(ours, reference)


def _runs(findings: Findings, values: list[Any]) -> bool:
    """Whether the original runs in float64 at all."""
    try:
        Precise(findings.captured.graph, findings.captured.module, {}, None).run(*doubled(values))
    except Exception:
        return False
    return True


class IncomparableError(Exception):
    """The original does not run in float64, so that there is no reference; the text says why."""


def sensitivity(findings: Findings, removal: Removal, removed: Mapping[str, Any]) -> float:
    """How much the reference itself moves, relatively, when its inputs move by one rounding of float64.

    A deep network with random statistics can amplify a rounding by many orders of magnitude. No two ways of computing
    it agree better than that, however right they are.
    """
    with clean_caches(findings.model), deterministic():
        values = findings.captured.values(findings.inputs)
        moved = pytree.tree_map_only(torch.Tensor, _move, doubled(values))
        return relative_error(
            _reference(findings, removal, removed, moved), _reference(findings, removal, removed, values)
        )


def _move(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * (1 + torch.finfo(torch.float64).eps) if tensor.is_floating_point() else tensor


def _reference(
    findings: Findings,
    removal: Removal,
    removed: Mapping[str, Any],
    values: list[Any],
    numbers: _Numbers | None = None,
) -> Any:
    changed = bool((findings.inexact & removal.removed).any())
    captured = findings.captured
    statistics = KeptStatistics(findings, removal) if changed else None
    return Precise(captured.graph, captured.module, removed, statistics, None, numbers).run(*doubled(values))


class _Numbers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the fractions that operations are called with, to be compared with those of another run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scopes = Scopes(NOTHING)
        self.scopes.scaled = self._scaled
        self.seen: dict[Key, tuple[float, ...]] = {}

    def _scaled(self, key: Key, query: torch.Tensor) -> None:
        self.seen[key] = (query.shape[-1] ** -0.5,)

    @contextlib.contextmanager
    def inside(self, module: nn.Module, path: str) -> Iterator[None]:
        """Follow a module, a copy of the one at `path`, and those in it."""
        self.scopes.follow(module, path)
        with self.scopes.watching(), self:
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "prim":
            name, named = bound(func, args, kwargs or {})
            key = self.scopes.now.key(name)
            if not self.scopes.now.loose and (found := numbers_of(named.values(), named)):
                self.seen[key] = found
        return func(*args, **(kwargs or {}))

    def agrees(self, other: _Numbers) -> bool:
        """Whether the operations that ran in both were called with the same numbers."""
        pairs = ((mine, other.seen[key]) for key, mine in self.seen.items() if key in other.seen)
        return all(len(a) != len(b) or np.allclose(a, b, rtol=TOLERANCE, atol=0, equal_nan=True) for a, b in pairs)


class KeptStatistics(Operations):  # type: ignore[no-untyped-call]
    """Operations that take a statistic over pruned slots see the kept ones only.

    Such a call is cut down to the kept slots of all its inputs, run, and its result put back among zeros.
    """

    def __init__(self, findings: Findings, removal: Removal) -> None:
        super().__init__(findings)
        self.removal = removal

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        entry = self.observation.marked.get(self.scopes.now.key(func._schema.name))
        if entry is None or entry[0].op != func._schema.name:
            return func(*args, **kwargs)
        call, outputs = entry
        names = [a.name for a in func._schema.arguments]
        bound = {**dict(zip(names, args, strict=False)), **kwargs}
        cut = {name: self._cut(value, call.arguments.get(name)) for name, value in bound.items()}
        for name, vectors in call.counts.items():
            if name in cut:
                sizes = self.removal.shape(vectors)
                cut[name] = list(sizes) if isinstance(bound[name], (list, tuple)) else sizes[0]
        if "scale" in names and bound.get("scale") is None and "query" in bound:  # that of the original width
            cut["scale"] = bound["query"].shape[-1] ** -0.5
        positional = [cut.pop(name) for name in names[: len(args)]]
        made = func(*positional, **cut)
        tensors = [made] if isinstance(made, torch.Tensor) else list(made)
        back = [self._put_back(t, o) for t, o in zip(tensors, outputs, strict=True)]
        if func._schema.name.endswith("_"):
            return args[0].copy_(back[0])
        return back[0] if isinstance(made, torch.Tensor) else type(made)(back)

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
        if kept is not None:  # positions among the kept, as positions among all
            value = torch.from_numpy(np.flatnonzero(kept)).to(value.device)[value]
        for dim, index in self._kept(operand.vectors):
            shape = list(value.shape)
            shape[dim] = operand.vectors[dim].size
            value = value.new_zeros(shape).index_copy_(dim, index.to(value.device), value)
        return value


def first_wrong_group(error_of: Callable[[Any], float], removal: Removal) -> int:
    """The first group whose removal alone already disagrees, -1 if only their combination does."""
    s = removal.solution
    for group in range(s.groups):
        channels = s.in_group(group)
        alone = np.zeros_like(removal.removed)
        alone[channels] = removal.removed[channels]
        if alone.any() and not error_of(alone) <= TOLERANCE:
            return group
    return -1
