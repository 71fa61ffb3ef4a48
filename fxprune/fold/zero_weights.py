"""Outputs of layers whose rows of the weight are all zero, for `masks="zeros"`: which there are, and why some stay.

Such an output is zero, or the number in its bias, for every input.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fxprune.analysis.findings import Findings
from fxprune.capture.tensors import PARAMETER
from fxprune.channels.groups import Bools, Ints, Removal
from fxprune.errors import counted
from fxprune.fold.folding import Folding, weight_output_dim_of
from fxprune.planning.plan import Removed


def masks_of_zero_rows(findings: Findings) -> dict[str, torch.Tensor]:
    """A mask [outputs], True = keep, for every layer that has outputs whose weights are all zero.

    By the name of the layer; by that of the weight if it is not called "weight".
    """
    masks: dict[str, torch.Tensor] = {}
    for name, tensor in findings.tensors.items():
        dim = weight_output_dim_of(findings, name)
        if dim is not None and tensor.is_floating_point():
            nonzero = _nonzero(tensor, dim)
            if not nonzero.all():
                masks[name.rpartition(".")[0] if name.endswith(".weight") else name] = torch.from_numpy(nonzero)
    return masks


def zeros_needed(findings: Findings, found: Folding) -> Removed:
    """The slots of removed channels and carriers that are zero in every parameter: {parameter: {dimension: slots}}.

    They become the `zeroed` of the plan: its reference is a model with these zeros.
    """
    removal, zero = Removal(findings.solution, found.removed | found.carriers), Removed()
    tensors = findings.captured.tensors
    trained = {name: tensors[name] for name in tensors.names(PARAMETER)}
    for axis in findings.axes:
        kept = removal.kept(axis.vector)
        if kept is None or axis.parameter not in trained or not trained[axis.parameter].is_floating_point():
            continue
        gone = np.flatnonzero(~kept & ~_nonzero(trained[axis.parameter], axis.dim)).tolist()
        if gone:
            for name in findings.names_of(axis.parameter):
                zero.setdefault(name, {})[axis.dim] = gone
    return zero


def why_zeros_stay(findings: Findings, found: Folding) -> tuple[str, ...]:
    """A line for each layer with outputs that are zero and stay, with the reason of the first of them."""
    rows = masks_of_zero_rows(findings)
    lines, written = [], _layers_that_write(findings) if rows else {}
    for layer, nonzero in rows.items():
        name = f"{layer}.weight" if f"{layer}.weight" in findings.tensors else layer
        columns = _channel_columns(findings, name)
        gone = np.zeros(len(nonzero), dtype=bool)
        for column in columns:
            gone |= (column >= 0) & found.removed[column]
        left = np.flatnonzero(~nonzero.numpy() & ~gone)
        if len(left):
            channels = [int(c) for column in columns for c in column[left] if c >= 0]
            others = dict.fromkeys(w for c in channels[:1] for w in written.get(c, ()) if w != name)
            listed = ", ".join(f'"{other}"' for other in list(others)[:3])
            why = f"they are not zero in {listed}" if others else ""
            why = (
                why
                or next((found.reasons[c] for c in channels if c in found.reasons), "")
                or _held_by(findings, name, channels)
            )
            listed = ", ".join(map(str, left[:6])) + (", ..." if len(left) > 6 else "")
            without = f"{counted(len(left), 'channel')} without weights {'stays' if len(left) == 1 else 'stay'}"
            lines.append(f'"{layer}": {without} ({listed}): {why}')
    return tuple(lines)


def _layers_that_write(findings: Findings) -> dict[int, list[str]]:
    """Channel -> the weights of layers in which its output rows are not zero."""
    made: dict[int, list[str]] = {}
    for name, tensor in findings.tensors.items():
        dim = weight_output_dim_of(findings, name)
        if dim is not None and tensor.is_floating_point():
            nonzero = _nonzero(tensor, dim)
            for column in _channel_columns(findings, name):
                for channel in np.unique(column[nonzero & (column >= 0)]).tolist():
                    made.setdefault(channel, []).append(name)
    return made


def _channel_columns(findings: Findings, name: str) -> list[Ints]:
    """The channels of each output slot of a layer's weight: arrays [outputs], -1 for no channel.

    A dimension that is a grid (heads x head width) has two arrays, since each slot is in two channels.
    """
    dim = weight_output_dim_of(findings, name)
    known = dim is not None and findings.has_axis(name, dim)
    return findings.solution.channels_of(findings.axis_vector(name, dim)) if dim is not None and known else []


def _nonzero(tensor: torch.Tensor, dim: int) -> Bools:
    """Flags of the slots of a dimension, True if any element of the slot is not zero."""
    flags = (tensor.detach() != 0).movedim(dim, 0).reshape(tensor.shape[dim], -1).any(1)
    return np.asarray(flags.cpu().numpy(), dtype=bool)


def _held_by(findings: Findings, name: str, channels: Sequence[int]) -> str:
    """The reason for which the outputs of a weight cannot be removed.

    channels: the channels of these outputs; none if they are locked.
    """
    if not findings.reads(name):
        return "forward does not use the layer"
    for locked in findings.locked:
        if (name, weight_output_dim_of(findings, name)) in locked.slots:
            return str(locked.event)
    statistic = next(findings.marked_by(np.asarray(channels, dtype=np.int64)), None)
    return "their group is ignored" if statistic is None else f"a statistic would change: {statistic}"
