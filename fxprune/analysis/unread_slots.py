"""Slots of parameters and buffers that the example inputs do not reach.

For example, `self.position_ids[:, : x.shape[1]]` reads as many slots as the input is long. The other slots are for
longer inputs. The analysis has not seen how they are used, so they are not removed.

What is made from tensors of the model alone, and from constants that forward makes, reads nothing yet
(`self.table.t()`, `self.position_ids[None]`, `~self.mask`). The slots that are read are those of the part that meets
the inputs at last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fxprune.channels.groups import Bools

_SPLITS = ("aten::split", "aten::split_with_sizes", "aten::unbind")

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
        self._constants: dict[int, torch.Tensor] = {}  # that forward makes, and what is made from them
        self._read: dict[int, dict[int, Bools]] = {}

    def open(self, tensor: torch.Tensor, real: torch.Tensor) -> None:
        """Begin to follow a tensor. `real` is the model's tensor that it was made from."""
        slots = {dim: np.arange(size) for dim, size in enumerate(tensor.shape)}
        self._views[id(tensor)] = (_View(tensor, id(tensor), tuple(slots), slots),)
        self._real[id(real)] = real

    def __copy__(self) -> UnreadSlots:
        made = UnreadSlots()
        made._real, made._views, made._constants = self._real, self._views.copy(), self._constants.copy()
        made._read = {owner: {d: flags.copy() for d, flags in read.items()} for owner, read in self._read.items()}
        return made

    def follows(self, tensor: torch.Tensor) -> bool:
        """True if this is a tensor of the model, given as `real`."""
        return id(tensor) in self._real

    def note(self, operation: str, raw: dict[str, Any], made: Any, same: Same = _no_same) -> None:
        """Note that an operation has read its arguments.

        raw: the arguments by name, with tensors. made: the result.
        """
        tensors, results = list(_tensors(raw.values())), list(_tensors([made]))
        alone = all(id(tensor) in self._views or id(tensor) in self._constants for tensor in tensors)
        for result in results:
            if alone:
                self._constants[id(result)] = result
            else:
                self._constants.pop(id(result), None)
        if not any(id(tensor) in self._views for tensor in tensors):
            return
        source = self._views.get(id(raw.get("self")), ())
        if source and operation in _SPLITS:
            for view in source:
                self._split(view, raw["dim"] % view.tensor.ndim, results)
        elif source and (chosen := _chosen(operation, raw, source[0].tensor.shape)):
            for view in source:
                self._choose(view, chosen, made, drops=operation == "aten::select")
        else:
            self._note_other(tensors, results, same, alone=alone)

    def _note_other(self, tensors: list[torch.Tensor], results: list[torch.Tensor], same: Same, *, alone: bool) -> None:
        """Follow what is made from tensors of the model alone; all else reads them."""
        for tensor, view in [(t, view) for t in tensors for view in self._views.get(id(t), ())]:
            if not alone or any(view.owner == id(result) for result in results):
                self._mark(view, view.slots)
                continue
            if len(view.dims) != tensor.ndim:  # changed in place, as by `unsqueeze_`
                self._mark(view, view.slots)
                self._follow(replace(view, dims=(None,) * tensor.ndim))
                continue
            dims = [same(tensor, result) for result in results]
            lost = set(range(tensor.ndim)).difference(*dims)
            self._mark(view, [along for d, along in enumerate(view.dims) if d in lost])
            for result, places in zip(results, dims, strict=True):
                along = tuple(None if d is None else view.dims[d] for d in places)
                self._follow(replace(view, tensor=result, dims=along))

    def _choose(self, view: _View, chosen: dict[int, Slots], made: torch.Tensor, *, drops: bool) -> None:
        """Follow what an operation takes from one or several dimensions. What nothing reads is not read."""
        for dim, positions in chosen.items():
            if (along := view.dims[dim]) is not None:
                self._flags(view, along)
            view = view.part(made, dim, positions, drops=drops)
        self._follow(view)

    def _follow(self, part: _View) -> None:
        """Follow a part of one owner beside the parts of others that the same tensor has."""
        before = self._views.get(id(part.tensor), ())
        self._views[id(part.tensor)] = (*(v for v in before if v.owner != part.owner), part)

    def _split(self, view: _View, dim: int, parts: Iterable[torch.Tensor]) -> None:
        start = 0
        for part in parts:
            drops = part.ndim < view.tensor.ndim
            size = 1 if drops else part.shape[dim]
            self._choose(view, {dim: np.arange(start, start + size)}, part, drops=drops)
            start += size

    def _mark(self, view: _View, dims: Iterable[int | None]) -> None:
        """Note that the slots of a view are read, of these dimensions of its owner."""
        for dim in dims:
            if dim is not None:
                self._flags(view, dim)[view.slots[dim]] = True

    def _flags(self, view: _View, dim: int) -> Bools:
        """A flag for each slot of a dimension of the owner, True = it is read."""
        read = self._read.setdefault(view.owner, {})
        if dim not in read:
            read[dim] = np.zeros(self._views[view.owner][0].tensor.shape[dim], dtype=bool)
        return read[dim]

    def missed(self, tensor: torch.Tensor) -> dict[int, Bools]:
        """Dimension -> a flag per slot, True = no operation has read it.

        Dimensions that were read whole are left out.
        """
        return {dim: ~read for dim, read in self._read.get(id(tensor), {}).items() if not read.all()}


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        yield from (t for t in (value if isinstance(value, (list, tuple)) else (value,)) if isinstance(t, torch.Tensor))


def _chosen(operation: str, raw: dict[str, Any], shape: torch.Size) -> dict[int, Slots]:
    """Dimension -> the slots that an operation takes of it, in the order of the result; {} if it is none of these."""
    slots = [np.arange(size) for size in shape]
    if operation in ("aten::slice", "aten::narrow", "aten::select"):
        dim = raw["dim"] % len(shape)
        return {dim: _taken(raw, slots[dim])}
    if operation == "aten::flip":
        return {d % len(shape): slots[d][::-1] for d in raw["dims"]}
    if operation == "aten::roll" and len(set(raw["dims"])) == len(raw["shifts"]):
        return {d % len(shape): np.roll(slots[d], shift) for d, shift in zip(raw["dims"], raw["shifts"], strict=True)}
    if operation == "aten::constant_pad_nd" and all(width <= 0 for width in raw["pad"]):
        widths = zip(raw["pad"][::2], raw["pad"][1::2], strict=True)
        return {len(shape) - n: slots[-n][-left : len(slots[-n]) + right] for n, (left, right) in enumerate(widths, 1)}
    return {}


def _taken(raw: dict[str, Any], every: Slots) -> Slots:
    """The slots that a slice takes."""
    if "index" in raw:
        return every[[raw["index"]]]
    if "length" in raw:
        return every[raw["start"] :][: raw["length"]]
    return every[slice(raw["start"], raw["end"], raw["step"])]
