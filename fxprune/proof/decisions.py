"""Decisions between numbers that are equal but for rounding: the small model takes those of the reference.

A detector sorts its boxes by scores. Where two scores are equal, or nearly so, rounding decides which comes first, and
rounding is another one in the small model. Both orders are right, but the results look very different. So an operation
that makes integers or flags from floating numbers (`sort`, `topk`, `argmax`, `nms`, a comparison) gives what it gave in
the reference, if the numbers that enter it are equal up to the tolerance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxprune.capture.scopes import Key
from fxprune.capture.values import tensors_in
from fxprune.proof.digests import Digest, Digester


@dataclass(frozen=True)
class TakenDecision:
    """A decision of the reference.

    entering: the digests of the tensors that entered the operation.
    others: its other arguments.
    made: its results.
    """

    entering: tuple[Digest, ...]
    others: tuple[Any, ...]
    made: Any


@dataclass
class Decisions:
    """The decisions of the reference, for the small model.

    tolerance: a relative error up to this is rounding.
    taken: the decisions by operation.
    followed: the operations where the small model had decided otherwise.
    """

    digester: Digester
    tolerance: float
    taken: dict[Key, TakenDecision] = field(default_factory=dict)
    followed: list[Key] = field(default_factory=list)

    def take(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> None:
        """Note what an operation of the reference gave, if it is a decision."""
        if _decides(func, args, kwargs, made):
            copied = pytree.tree_map_only(torch.Tensor, torch.clone, made)
            self.taken[key] = TakenDecision(*self._entering(args, kwargs), copied)

    def follow(self, key: Key, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> Any:
        """Returns `made`, or the decision of the reference if the small model has decided otherwise by rounding."""
        before = self.taken.get(key)
        if before is None or not _decides(func, args, kwargs, made) or not _otherwise(made, before.made):
            return made
        entering, others = self._entering(args, kwargs)
        if others != before.others or len(entering) != len(before.entering):
            return made
        if any(not a.error(b) <= self.tolerance for a, b in zip(entering, before.entering, strict=True)):
            return made
        self.followed.append(key)
        return pytree.tree_map_only(torch.Tensor, torch.clone, before.made)

    def note(self) -> str:
        """A sentence about what was followed, "" if nothing was."""
        if not self.followed:
            return ""
        places = dict.fromkeys(f"{name} in {scope or 'the model'}" for scope, _, name, _ in self.followed)
        listed = ", ".join(list(places)[:3]) + (", ..." if len(places) > 3 else "")
        return f"rounding decides between equal numbers ({listed}): the proof takes the decisions of the original"

    def _entering(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Digest, ...], tuple[Any, ...]]:
        """The digests of the tensors among arguments, and the other arguments."""
        leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        others = tuple(leaf for leaf in leaves if not isinstance(leaf, torch.Tensor))
        return tuple(self.digester.digest(tensor) for tensor in tensors), others


def _decides(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> bool:
    """True if an operation makes new integers or flags from floating tensors."""
    if func._schema.is_mutable:
        return False
    entering = any(tensor.is_floating_point() for tensor in tensors_in([*args, *kwargs.values()]))
    return entering and any(not _floating(tensor) for tensor in tensors_in(made))


def _otherwise(made: Any, before: Any) -> bool:
    """True if two results hold other integers or flags."""
    with torch._C._DisableTorchDispatch():
        pairs = zip(tensors_in(made), tensors_in(before), strict=True)
        return any(not _floating(a) and not torch.equal(a, b) for a, b in pairs)


def _floating(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
