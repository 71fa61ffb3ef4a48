"""Packed weights: what stands in blocks beside or instead of a parameter, as its config's `quantization_config` says.

MXFP4 stores `NAME_blocks` and `NAME_scales` in the place of a parameter, each block 32 numbers of its input dimension.
Float8 stores the numbers themselves, and scales in `NAME_scale_inv` or `NAME_scale`: one for all, one for each row, or
one for each block. Other packings are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fxprune.errors import FileError
from fxprune.streaming.checkpoint import Checkpoint, Stored
from fxprune.streaming.layout import StoredAxis, StoredPart

SCALES = ("_scale_inv", "_scale", ".input_scale", ".activation_scale")
"""The ends of the names of scales, beside the name of their weight."""

MXFP4_BLOCK = 32
"""The number of elements of MXFP4 that share one scale."""

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class Packed:
    """The packed tensors of a checkpoint.

    plain: the tensors that are parameters as they are. scales: name of a scale -> that of its weight, one of `plain`.
    blocks: name of a tensor with packed numbers or their scales -> the name of the parameter that it stands for.
    """

    plain: Mapping[str, Stored]
    scales: Mapping[str, str]
    blocks: Mapping[str, str]


def packed_of(checkpoint: Checkpoint) -> Packed:
    """The packed tensors of a checkpoint. Raises `FileError` for a packing that is not known."""
    method = str(checkpoint.quantization.get("quant_method", "") or "")
    tensors = checkpoint.tensors
    blocks = {}
    if method == "mxfp4":
        for name in tensors:
            for end in ("_blocks", "_scales"):
                base = name.removesuffix(end)
                if base != name and {f"{base}_blocks", f"{base}_scales"} <= tensors.keys():
                    blocks[name] = base
    scales = {name: base for name in tensors if (base := _weight_of(name, tensors)) and name not in blocks}
    plain = {name: stored for name, stored in tensors.items() if name not in blocks and name not in scales}
    if method and method not in ("mxfp4", "fp8", "fbgemm_fp8", "compressed-tensors"):
        raise _unknown(method, next(iter(plain)))
    for name, stored in plain.items():
        if not stored.dtype.is_floating_point and (method or name.endswith(("qweight", "qzeros", "_packed"))):
            raise _unknown(method or "an unknown packing", name)
    return Packed(plain, scales, blocks)


def _unknown(method: str, name: str) -> FileError:
    return FileError(
        f"weights packed by {method} cannot be cut",
        at=f'"{name}"',
        why="it is not known which of its numbers belong to which channel",
        do="stream the checkpoint that was packed, and pack the result",
    )


def _weight_of(name: str, tensors: Mapping[str, Stored]) -> str:
    """The weight that a scale belongs to, "" if it is no scale of a float8 weight."""
    for end in SCALES:
        if name.endswith(end):
            base = name.removesuffix(end)
            for weight in (base, f"{base}.weight"):
                if weight in tensors and tensors[weight].dtype in FLOAT8:
                    return weight
    return ""


def parts_of_scales(checkpoint: Checkpoint, packed: Packed, parts: Iterable[StoredPart]) -> list[StoredPart]:
    """The parts of float8 scales, from those of their weights. Raises `FileError` for a shape that is not known."""
    by_stored: dict[str, list[StoredPart]] = {}
    for part in parts:
        by_stored.setdefault(part.stored, []).append(part)
    size = checkpoint.quantization.get("weight_block_size")
    blocks: Sequence[Any] = size if isinstance(size, list | tuple) else ()
    made = []
    for name, weight in packed.scales.items():
        shape, of_weight = checkpoint.tensors[name].shape, checkpoint.tensors[weight].shape
        if len(shape) not in (0, 1, len(of_weight)):
            raise _odd(name, shape, of_weight)
        for part in by_stored.get(weight, ()):
            axes = [_scale_axis(name, d, shape, of_weight, part.axes[d], blocks) for d in range(len(shape))]
            made.append(StoredPart(name, part.parameter, tuple(axes), part.fixed))
    return made


def _odd(name: str, shape: tuple[int, ...], of_weight: tuple[int, ...]) -> FileError:
    return FileError(
        f'it is not known what the scales in "{name}" are of',
        why=f"they have shape {shape}, the weight has shape {of_weight}",
        do="stream the checkpoint that was packed, and pack the result",
    )


def _scale_axis(
    name: str, dim: int, shape: tuple[int, ...], of_weight: tuple[int, ...], axis: StoredAxis, blocks: Sequence[Any]
) -> StoredAxis:
    """The axis of a dimension of scales, which go with a dimension of their weight."""
    count, whole = shape[dim], of_weight[dim]
    if count == whole:
        return axis
    if count == 1:
        return StoredAxis(0, 1)
    block = blocks[dim - len(of_weight)] if len(blocks) >= len(of_weight) - dim else -(-whole // count)
    if type(block) is not int or -(-whole // block) != count or axis.start % block:
        raise _odd(name, shape, of_weight)
    return StoredAxis(axis.start // block, -(-axis.count // block), axis.dim, axis.slots, block)


def parts_of_blocks(
    checkpoint: Checkpoint, blocks: Mapping[str, str], names: Mapping[str, str], state: Any
) -> list[StoredPart]:
    """The parts of MXFP4 tensors.

    names: name in the checkpoint of a parameter -> its name in the model. state: name in the model -> the parameter.
    Raises `FileError` for shapes that are not those of the library: [experts, outputs, inputs / 32, 16] for a parameter
    [experts, inputs, outputs].
    """
    made = []
    for stored, base in blocks.items():
        parameter = names[base]
        experts, inputs, outputs = state[parameter].shape if state[parameter].ndim == 3 else (0, 0, 0)
        shape = checkpoint.tensors[stored].shape
        wanted = (experts, outputs, inputs // MXFP4_BLOCK)
        if shape[:3] != wanted or len(shape) > 4 or inputs % MXFP4_BLOCK:
            raise _odd(stored, shape, tuple(state[parameter].shape))
        axes = [
            StoredAxis(0, experts, 0, np.arange(experts)),
            StoredAxis(0, outputs, 2, np.arange(outputs)),
            StoredAxis(0, inputs // MXFP4_BLOCK, 1, np.arange(inputs), MXFP4_BLOCK),
            *(StoredAxis(0, size) for size in shape[3:]),
        ]
        made.append(StoredPart(stored, parameter, tuple(axes)))
    return made
