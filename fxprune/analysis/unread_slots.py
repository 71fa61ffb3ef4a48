"""Slots of parameters and buffers that the example inputs do not reach.

For example, `self.position_ids[:, : x.shape[1]]` reads as many slots as the input is long. The other slots are for
longer inputs. The analysis has not seen how they are used, so they are not removed.

What is made from tensors of the model alone (`self.table.t()`, `self.position_ids[None]`, `~self.mask`) reads nothing
yet: the slots that are read are those of the part that an operation takes at last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fxprune.channels.groups import Bools

_SLICES = ("aten::slice", "aten::narrow", "aten::select")
_SPLITS = ("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::tensor_split", "aten::unbind")

Slots = npt.NDArray[np.int64]
Same = Callable[[torch.Tensor, torch.Tensor], tuple[int | None, ...]]
"""(tensor, made) -> for each dimension of `made` the one of `tensor` that it has the slots of; None for others."""


def _no_same(tensor: torch.Tensor, made: torch.Tensor) -> tuple[int | None, ...]:
    return (None,) * made.ndim


@dataclass(frozen=True)
class _View:
    """A tensor that has slots of a tensor of the model, the owner.

    tensor: the tensor itself; while it is here, no other one gets its id. dims: the dimension of the owner that each
    dimension runs along, None for others. slots: dimension of the owner -> the slots of it that the view is made from.
    """

    tensor: torch.Tensor
    owner: int
    dims: tuple[int | None, ...]
    slots: dict[int, Slots]

    def part(self, made: torch.Tensor, dim: int, positions: Slots, *, drops: bool) -> _View:
        """The view that has some slots of a dimension. drops: the dimension itself is gone."""
        along = self.dims[dim]
        slots = self.slots if along is None else {**self.slots, along: self.slots[along][positions]}
        dims = (*self.dims[:dim], *self.dims[dim + 1 :]) if drops else self.dims
        return replace(self, tensor=made, dims=dims, slots=slots)


class UnreadSlots:
    """Notes which slots of the model's tensors are read."""

    def __init__(self) -> None:
        self._real: dict[int, torch.Tensor] = {}
        self._views: dict[int, tuple[_View, ...]] = {}
        self._read: dict[int, dict[int, Bools]] = {}

    def open(self, tensor: torch.Tensor, real: torch.Tensor) -> None:
        """Begin to follow a tensor. `real` is the model's tensor that it was made from."""
        slots = {dim: np.arange(size) for dim, size in enumerate(tensor.shape)}
        self._views[id(tensor)] = (_View(tensor, id(tensor), tuple(slots), slots),)
        self._real[id(real)] = real

    def __copy__(self) -> UnreadSlots:
        made = UnreadSlots()
        made._real, made._views = self._real, self._views.copy()
        made._read = {owner: {d: flags.copy() for d, flags in read.items()} for owner, read in self._read.items()}
        return made

    def follows(self, tensor: torch.Tensor) -> bool:
        """True if this is a tensor of the model, given as `real`."""
        return id(tensor) in self._real

    def note(self, operation: str, raw: dict[str, Any], made: Any, same: Same = _no_same) -> None:
        """Note that an operation has read its arguments.

        raw: the arguments by name, with tensors. made: the result.
        """
        tensors = [t for v in raw.values() for t in (v if isinstance(v, (list, tuple)) else (v,))]
        tensors = [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]
        if not any(id(tensor) in self._views for tensor in tensors):
            return
        source = raw.get("self")
        if operation in _SLICES and self._views.get(id(source)):
            for view in self._views[id(source)]:
                dim = raw["dim"] % view.tensor.ndim
                part = view.part(made, dim, _taken(raw, view.tensor.shape), drops="index" in raw)
                self._follow(part)
                self._mark(part, view.dims[dim])
        elif operation in _SPLITS and self._views.get(id(source)):
            for view in self._views[id(source)]:
                self._split(view, raw["dim"] % view.tensor.ndim, made)
        else:
            self._note_other(tensors, made, same)

    def _note_other(self, tensors: list[torch.Tensor], made: Any, same: Same) -> None:
        """Follow what is made from tensors of the model alone; all else reads them."""
        alone = isinstance(made, torch.Tensor) and all(id(tensor) in self._views for tensor in tensors)
        for tensor, view in [(t, view) for t in tensors for view in self._views.get(id(t), ())]:
            if not alone or view.owner == id(made):
                self._mark(view, *view.slots)
                continue
            dims = same(tensor, made)
            self._mark(view, *(along for d, along in enumerate(view.dims) if d not in dims))
            self._follow(replace(view, tensor=made, dims=tuple(None if d is None else view.dims[d] for d in dims)))

    def _follow(self, part: _View) -> None:
        """Follow a part of one owner beside the parts of others that the same tensor has."""
        before = self._views.get(id(part.tensor), ())
        self._views[id(part.tensor)] = (*(v for v in before if v.owner != part.owner), part)

    def _split(self, view: _View, dim: int, made: Any) -> None:
        """Follow each part. A part that nothing reads is not read."""
        start = 0
        for part in made:
            drops = part.ndim < view.tensor.ndim
            size = 1 if drops else part.shape[dim]
            self._follow(view.part(part, dim, np.arange(start, start + size), drops=drops))
            start += size
        if (along := view.dims[dim]) is not None:
            self._flags(view, along)

    def _mark(self, view: _View, *dims: int | None) -> None:
        """Note that the slots of a view are read, of these dimensions of its owner."""
        for dim in dims:
            if dim is not None:
                self._flags(view, dim)[view.slots[dim]] = True

    def _flags(self, view: _View, dim: int) -> Bools:
        """A flag for each slot of a dimension of the owner, True = it is read."""
        owner = self._views[view.owner][0].tensor
        return self._read.setdefault(view.owner, {}).setdefault(dim, np.zeros(owner.shape[dim], dtype=bool))

    def missed(self, tensor: torch.Tensor) -> dict[int, Bools]:
        """Dimension -> a flag per slot, True = no operation has read it.

        Dimensions that were read whole are left out.
        """
        return {dim: ~read for dim, read in self._read.get(id(tensor), {}).items() if not read.all()}


def _taken(raw: dict[str, Any], shape: torch.Size) -> Slots:
    """The slots that a slice takes."""
    every = np.arange(shape[raw["dim"]])
    if "index" in raw:
        return every[[raw["index"]]]
    if "length" in raw:
        return every[raw["start"] :][: raw["length"]]
    return every[slice(raw["start"], raw["end"], raw["step"])]
