"""Parameters and buffers at their new sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.capture.layouts import is_packed, is_sparse
from fxprune.channels.groups import Bools, Ints, Removal
from fxprune.on_demand import OnDemand

BLOCK = 1 << 16
"""The most elements of a tensor that are copied at a time: they stay in the processor's cache between two copies."""


def cut_all(findings: Findings, removal: Removal) -> dict[str, torch.Tensor]:
    """A new tensor for every parameter, buffer and constant of the model, by name."""
    kept = kept_slots(findings, removal)
    made: dict[str, torch.Tensor] = {}
    for name, tensor in findings.tensors.items():
        source = findings.observed.renumbered.get(id(tensor))
        positions = None if source is None else removal.kept(source)
        made[name] = like(tensor, _part(tensor, kept.get(name, {}), positions))
        _cut_attributes(tensor, made[name], kept.get(name, {}), findings.tensors)
    return made


def _cut_attributes(
    old: torch.Tensor, new: torch.Tensor, kept: dict[int, Bools], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Give a new parameter copies of the tensors in attributes of the old one, such as the `main_grad` of Megatron.

    One of the shape of the parameter is cut like it. Tensors of the model itself are left as they are.
    """
    if not old.__dict__ or isinstance(old, OnDemand):
        return
    known = {id(tensor) for tensor in tensors.values()}
    for name, value in old.__dict__.items():
        if type(value) is torch.Tensor and id(value) not in known and not (is_sparse(value) or is_packed(value)):
            same = value.shape == old.shape
            new.__dict__[name] = cut(value.detach(), kept if same else {}).requires_grad_(_is_trained(value))


def _part(tensor: torch.Tensor, kept: dict[int, Bools], positions: Bools | None) -> torch.Tensor:
    """The kept part of a tensor, whose numbers may be positions. Holds no whole of a sharded one when it returns."""
    values = tensor.detach()
    return cut(values if positions is None else renumber(values, positions), kept)


def kept_part_of(findings: Findings, removal: Removal) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """A function from the name of a tensor and another one that is broadcast to its shape, to the part that stays."""
    kept = kept_slots(findings, removal)

    def part(name: str, values: torch.Tensor) -> torch.Tensor:
        return cut(values.detach(), {dim: k for dim, k in kept.get(name, {}).items() if values.shape[dim] > 1})

    return part


def cut(values: torch.Tensor, kept: dict[int, Bools]) -> torch.Tensor:
    """A copy with only the kept slots. kept: dimension -> flags of its slots, for the dimensions that lose some."""
    if not kept:
        return values.clone()
    channels_last = values.ndim == 4 and not values.is_contiguous()
    channels_last = channels_last and values.is_contiguous(memory_format=torch.channels_last)
    dims = sorted(kept, key=lambda d: float(kept[d].mean()))
    if len(dims) > 1 and values.numel() > BLOCK and _by_numpy(values):
        values = _in_blocks(values, kept)
    else:
        for dim in dims:
            values = _take(values, dim, np.flatnonzero(kept[dim]))
    return values.contiguous(memory_format=torch.channels_last) if channels_last else values.contiguous()


_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NOT_SELECTED = (torch.uint16, torch.uint32, torch.uint64)
"""The types that torch selects no slots of."""


def _in_blocks(values: torch.Tensor, kept: dict[int, Bools]) -> torch.Tensor:
    """Cut a tensor along several dimensions, some rows at a time: they stay in the cache until they are cut further."""
    rows = np.flatnonzero(kept[0]) if 0 in kept else np.arange(values.shape[0])
    *others, (last, last_index) = [(dim, np.flatnonzero(flags)) for dim, flags in kept.items() if dim]
    shape = [int(kept[d].sum()) if d in kept else size for d, size in enumerate(values.shape)]
    result = values.new_empty(shape)
    source, made = _words(values), _words(result)
    step = max(1, BLOCK * values.shape[0] // values.numel())
    for start in range(0, len(rows), step):
        block = source.take(rows[start : start + step], 0, mode="clip")
        for dim, index in others:
            block = block.take(index, dim, mode="clip")
        block.take(last_index, last, out=made[start : start + step], mode="clip")
    return result


def _take(values: torch.Tensor, dim: int, index: Ints) -> torch.Tensor:
    """`index_select`; on the CPU by numpy, which uses one thread and so never waits for others on a busy machine."""
    if not _by_numpy(values):
        where = torch.from_numpy(index).to(values.device)
        if values.dtype in _NOT_SELECTED:
            return values.view(_SAME_SIZE[values.element_size()]).index_select(dim, where).view(values.dtype)
        return values.index_select(dim, where)
    # The result is in memory of torch, which is aligned for its kernels; that of numpy is not
    result = values.new_empty([*values.shape[:dim], len(index), *values.shape[dim + 1 :]])
    _words(values).take(index, dim, out=_words(result), mode="clip")
    return result


def _by_numpy(values: torch.Tensor) -> bool:
    """True for a tensor whose memory numpy can read in the order of the dimensions."""
    return values.device.type == "cpu" and values.is_contiguous() and not values.is_complex()


def _words(values: torch.Tensor) -> npt.NDArray[np.integer]:
    """The memory of a tensor as integers of the size of its elements: numpy does not know all types of torch."""
    return values.view(_SAME_SIZE[values.element_size()]).numpy()


def renumber(positions: torch.Tensor, kept: Bools) -> torch.Tensor:
    """Positions in a dimension as positions among its kept slots; that of a removed slot is any number in range."""
    rank = torch.from_numpy(np.maximum(np.cumsum(kept) - 1, 0)).to(positions.device)
    return rank[positions.long() % len(kept)].to(positions.dtype)


def like(old: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`values` as the same kind of tensor as `old`: a parameter with its `requires_grad` and attributes."""
    if isinstance(old, OnDemand):
        new: torch.Tensor = old.spread(values)
    elif isinstance(old, nn.Parameter):
        new = type(old)(values, requires_grad=old.requires_grad)
    else:
        new = values.requires_grad_(_is_trained(old))
    new.__dict__.update(old.__dict__)
    return new


def _is_trained(tensor: torch.Tensor) -> bool:
    """True for a tensor that gets gradients itself. A result of the user's last call has some by its history alone."""
    return tensor.requires_grad and tensor.is_leaf
