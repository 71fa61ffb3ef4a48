"""The data of a repair: what the model is called with, in parts, some of which are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.capture.inputs import Inputs

BatchT = TypeVar("BatchT")

PARTS = 10
"""Fewer batches than these are split, so that some samples can be held out."""


@dataclass(frozen=True)
class DataPart:
    """A part of the data.

    inputs: the arguments of the model. batch: the number of the batch that it is from. held: True if it is held out.
    """

    inputs: Inputs
    batch: int
    held: bool = False

    @property
    def form(self) -> Any:
        """The nesting, shapes and other values, on which the course of a forward may depend besides numbers."""
        leaves, spec = pytree.tree_flatten(self.inputs)
        return str(spec), tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves)


def parts_of(batches: Sequence[Inputs], total: int, runs: Callable[[DataPart], bool]) -> list[DataPart]:
    """The batches, split along their first dimension into at least `PARTS` parts where that is possible.

    total: the number of batches, with those of other processes. runs: a function that is True if the models take a
    part.
    """
    whole = [DataPart(batch, number) for number, batch in enumerate(batches)]
    if total >= PARTS:
        return whole
    pieces = -(-PARTS // total)
    made = [DataPart(piece, part.batch) for part in whole for piece in split(part.inputs, pieces)]
    return made if len(made) > len(whole) and all(map(runs, (made[0], made[-1]))) else whole


def split(batch: BatchT, pieces: int) -> list[BatchT]:
    """The pieces of a batch, or the batch alone if its tensors do not have one first dimension."""
    leaves, spec = pytree.tree_flatten(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in tensors}
    size = max(sizes, default=0)
    if len(sizes) > 1 or size < 2:
        return [batch]
    chunks = [
        leaf.chunk(min(pieces, size)) if isinstance(leaf, Tensor) else [leaf] * min(pieces, size) for leaf in leaves
    ]
    return [pytree.tree_unflatten(list(piece), spec) for piece in zip(*chunks, strict=False)]


def held_out(count: int, share: float) -> list[bool]:
    """For each part True if it is held out: every n-th one, at least one, and at least one is not.

    >>> held_out(5, 0.4)
    [False, False, True, False, True]
    """
    wanted = min(max(round(count * share), 1), count - 1)
    return [((number + 1) * wanted) // count > (number * wanted) // count for number in range(count)]


def own_tensors(inputs: Inputs, device: torch.device | None) -> Inputs:
    """The inputs with copies of their tensors, into which a forward may write. device: where they are, if not there."""
    moved: Inputs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device or tensor.device, copy=True), inputs)
    return moved
