"""Sets of outputs: all outputs of a layer, and the pruned ones, a set that reads and writes a mask."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator, MutableSet, Sequence, Set
from typing import Any, Protocol, overload

import torch

from fxprune.errors import PlanError


class OriginalOutputs(Sequence[int], Set[int]):
    """The indices 0 .. size - 1 of a layer's outputs: a set, and also a sequence, for `random.sample`.

    >>> import random
    >>> outputs = OriginalOutputs(6)
    >>> len(random.sample(outputs, 2)), outputs - {0, 1, 2}, outputs == set(range(6))
    (2, {3, 4, 5}, True)
    """

    def __init__(self, size: int) -> None:
        self._range = range(size)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> range: ...

    def __getitem__(self, index: int | slice) -> int | range:
        return self._range[index]

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[int]:
        return iter(self._range)

    def __contains__(self, index: object) -> bool:
        return index in self._range

    @classmethod
    def _from_iterable(cls, indices: Iterable[int]) -> set[int]:  # type: ignore[override]
        return set(indices)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)})"


class MaskOwner(Protocol):
    """An object that holds the mask of a layer's outputs, True = keep."""

    mask: torch.Tensor

    def set_mask(self, mask: torch.Tensor) -> None:
        """Sets another mask of the same shape. Raises `PlanError` if it does not fit."""


class PrunedOutputs(MutableSet[int]):
    """The pruned outputs of a layer: a set of indices that is stored as a mask.

    It has the in-place methods of `set`; each changes the mask, in one operation for any number of indices. Indices may
    be any iterable of integers, or a tensor of integers. Copies and differences are plain sets.

    Raises `PlanError` for an index that the layer lacks, and if no output would be left.

    >>> from fxprune.pruner.parametrization import PruningParametrization
    >>> pruned = PruningParametrization(6).pruned_outputs
    >>> pruned.update([5, 1]); pruned.discard(1); pruned
    {5}
    >>> 5 in pruned, len(pruned), pruned == {5}
    (True, 1, True)
    """

    def __init__(self, owner: MaskOwner) -> None:
        self._owner = owner

    # -- reading --------------------------------------------------------------------------------------------

    def __contains__(self, index: object) -> bool:
        mask = self._owner.mask
        return isinstance(index, numbers.Integral) and 0 <= int(index) < len(mask) and not bool(mask[int(index)])

    def __iter__(self) -> Iterator[int]:
        return iter((~self._owner.mask).nonzero().flatten().tolist())

    def __len__(self) -> int:
        return int((~self._owner.mask).sum())

    @classmethod
    def _from_iterable(cls, indices: Iterable[int]) -> set[int]:  # type: ignore[override]
        return set(indices)

    def copy(self) -> set[int]:
        """Returns the members as a plain set."""
        return set(self)

    def __repr__(self) -> str:
        return repr(set(self))

    # -- changing -------------------------------------------------------------------------------------------

    def update(self, *others: Iterable[int]) -> None:
        """Prunes all of these outputs too."""
        self._set(others, keep=False)

    def difference_update(self, *others: Iterable[int]) -> None:
        """Brings all of these outputs back."""
        self._set(others, keep=True)

    def add(self, value: int) -> None:
        """Prunes one more output."""
        self._set([[value]], keep=False)

    def discard(self, value: int) -> None:
        """Brings one output back, if it is pruned."""
        if value in self:
            self._set([[value]], keep=True)

    def clear(self) -> None:
        """Brings every output back."""
        self._owner.set_mask(torch.ones_like(self._owner.mask))

    def replace(self, indices: Iterable[int]) -> None:
        """Prunes these outputs and no others."""
        mask = torch.ones_like(self._owner.mask)
        mask[self._positions(indices)] = False
        self._owner.set_mask(mask)

    def __ior__(self, other: Set[int]) -> PrunedOutputs:  # type: ignore[override, misc]
        self.update(other)
        return self

    def __isub__(self, other: Set[Any]) -> PrunedOutputs:
        self.difference_update(other)
        return self

    def __iand__(self, other: Set[Any]) -> PrunedOutputs:
        self.replace(set(self) & set(other))
        return self

    def __ixor__(self, other: Set[int]) -> PrunedOutputs:  # type: ignore[override, misc]
        self.replace(set(self) ^ set(other))
        return self

    def _set(self, others: Iterable[Iterable[int]], *, keep: bool) -> None:
        mask = self._owner.mask.clone()
        for indices in others:
            mask[self._positions(indices)] = keep
        self._owner.set_mask(mask)

    def _positions(self, indices: Any) -> torch.Tensor:
        mask = self._owner.mask
        if isinstance(indices, torch.Tensor):
            listed = indices.detach().to(mask.device).flatten()
        else:
            listed = torch.tensor(list(indices), device=mask.device)
        if not listed.numel():
            return listed.to(torch.int64)
        if listed.dtype is torch.bool or listed.is_floating_point() or listed.is_complex():
            raise PlanError(
                "pruned outputs must be integers",
                why=f"their type is {str(listed.dtype).removeprefix('torch.')}",
                do="pass indices; of a mask, mask.logical_not().nonzero()",
            )
        low, high = int(listed.min()), int(listed.max())
        if low < 0 or high >= len(mask):
            raise PlanError(
                f"there is no output {low if low < 0 else high} to prune",
                why=f"the layer has the outputs 0 to {len(mask) - 1}",
                do=f"pass numbers from 0 to {len(mask) - 1}",
            )
        return listed.to(torch.int64)
