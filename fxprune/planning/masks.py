"""Masks: the user names the channels of a layer one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.modules import conv

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools, Ints
from fxprune.errors import PlanError, counted
from fxprune.given_masks import bool_mask
from fxprune.names import Names
from fxprune.pattern_values import Candidate, winners
from fxprune.planning.select import names_in


def every_channel(findings: Findings, masks: str, stay: set[int]) -> Bools:
    """All channels except those of the groups that stay, as flags: masks="zeros" chooses from them.

    stay: the numbers of these groups. Raises `PlanError` for any other name of masks.
    """
    if masks != "zeros":
        raise PlanError(
            f"there are no masks {masks!r}",
            why='the only ones with a name are "zeros"',
            do='pass masks="zeros", or a dict of masks by layer',
        )
    removed = np.ones(findings.solution.channels, dtype=bool)
    for group in stay:
        removed[findings.solution.in_group(group)] = False
    return removed


def removed_by_masks(findings: Findings, masks: Mapping[str, Any], stay: set[int]) -> tuple[Bools, tuple[str, ...]]:
    """The channels that masks remove, as flags, and the reasons why some channels stay.

    masks: {pattern: bool tensor [out_channels], True = keep}. stay: the numbers of the groups that must stay.

    In a dimension that is a grid (conv groups, heads), a whole row or column is removed if the mask has all its slots.
    """
    if not isinstance(masks, Mapping):
        raise PlanError(
            f"masks must be a dict, not {type(masks).__name__}", do='pass {layer: bool tensor, True = keep}, or "zeros"'
        )
    s = findings.solution
    wanted = s.no_channel()
    asked: list[tuple[str, tuple[str, int], list[Ints], Bools]] = []
    for layer, parameter, dim, whole_mask in _checked(findings, masks):
        keep = _of_all_groups(whole_mask, findings.tensors[parameter].shape[dim])
        columns = s.channels_of(findings.axis_vector(parameter, dim)) if findings.has_axis(parameter, dim) else []
        for column in columns:
            outside = s.no_channel()
            outside[column[keep & (column >= 0)]] = True
            inside = np.unique(column[~keep & (column >= 0)])
            whole = inside[~outside[inside]] if len(columns) > 1 else inside
            wanted[whole] = True
        tiled = [np.tile(column, len(whole_mask) // len(keep)) for column in columns]
        asked.append((layer, (parameter, dim), tiled, ~whole_mask))
    held = s.no_channel()
    for group in stay:
        held[s.in_group(group)] = True
    removed = wanted & ~held
    reasons = []
    for layer, outputs, columns, drop in asked:
        gone = np.zeros(len(drop), dtype=bool)
        for column in columns:
            gone |= (column >= 0) & removed[column]
        left = np.flatnonzero(drop & ~gone)
        if len(left):
            listed = ", ".join(map(str, left[:6])) + (", ..." if len(left) > 6 else "")
            why = why_stay(findings, outputs, columns, left, held)
            reasons.append(f'"{layer}": {counted(len(left), "masked channel", "stay")} ({listed}): {why}')
        also = np.flatnonzero(~drop & gone)
        if len(also):
            listed = ", ".join(map(str, also[:6])) + (", ..." if len(also) > 6 else "")
            reasons.append(
                f'"{layer}": channels {listed} go although kept by the mask: they are coupled to masked ones'
            )
    return removed, tuple(reasons)


def _checked(findings: Findings, masks: Mapping[Any, Any]) -> list[tuple[str, str, int, Bools]]:
    """A tuple for each layer with a mask: its name, its weight, the output dimension, and the mask as an array."""
    named = layers_named(findings, masks, what="masks")
    return [(layer, weight, *_check(findings, layer, weight, masks[pattern])) for layer, weight, pattern in named]


def layers_named(findings: Findings, patterns: Iterable[Any], *, what: str) -> list[tuple[str, str, Any]]:
    """The layers and tensors that patterns name, in the order of the patterns.

    what: the name of the option, for errors. Returns the name of each, its weight, and the pattern.
    """
    patterns = list(patterns)
    selectable = names_in(findings)
    weights = _weights(findings, selectable)
    layers = [Candidate(f'layer "{names[0]}"', names) for names in weights.values()]
    others = [selectable.spellings(name) for name in findings.tensors if name not in weights]
    tensors = [Candidate(f'"{names[0]}"', names, exact_only=True) for names in others]
    parameters = [*weights, *(names[0] for names in others)]
    won = winners(selectable, patterns, [*layers, *tensors], what=what, kind="layer with a weight")
    order = {pattern: number for number, pattern in enumerate(patterns)}
    named = []
    for position, pattern in sorted(won.items(), key=lambda item: (order[item[1]], item[0])):
        paths = [*layers, *tensors][position].paths
        layer = pattern if pattern in paths else paths[0]
        named.append((layer, parameters[position], pattern))
    return named


_WEIGHTS = (
    ".weight",
    ".parametrizations.weight.original",
    ".parametrizations.weight.original1",
    ".weight_orig",
    ".weight_v",
)
"""The endings of the name of a layer's weight, or of the tensor it is computed from. The first that exists counts."""


def _weights(findings: Findings, selectable: Names) -> dict[str, tuple[str, ...]]:
    """The weights of layers: name of the weight -> all names of its layer, then all names of the weight."""
    found: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    for end in _WEIGHTS:
        for name in findings.tensors:
            names = selectable.spellings(name)
            layers = [other.removesuffix(end) for other in names if other.endswith(end)]
            if layers and seen.isdisjoint(layers):
                found[name] = (*layers, *names)
                seen.update(layers)
    return found


def _check(findings: Findings, layer: str, parameter: str, mask: Any) -> tuple[int, Bools]:
    """The output dimension and the mask as an array. Raises `PlanError` for a mask that does not fit."""
    tensor = findings.tensors[parameter]
    module, dim = findings.layer(parameter), findings.dim_of_outputs(parameter)
    groups = module.groups if isinstance(module, conv._ConvTransposeNd) and tensor.ndim > 1 else 1
    size = tensor.shape[dim] * groups if tensor.ndim else 1
    found = bool_mask(mask)
    if isinstance(found, str):
        what, do = f'the mask of "{layer}" is not boolean', "pass a bool tensor, True = keep"
        raise PlanError(what, at=f'masks["{layer}"]', why=found, do=do)
    mask = found
    if mask.shape not in ((size,), (size // groups,)):
        raise PlanError(
            f'the mask of "{layer}" has the wrong length',
            at=f'masks["{layer}"]',
            why=f"its shape is {tuple(mask.shape)}, the layer has {size} output channels",
            do="pass one entry per output channel, True = keep" + _of_single_weights(tensor, dim, mask),
        )
    if not mask.any():
        raise PlanError(
            f'the mask of "{layer}" removes every channel',
            at=f'masks["{layer}"]',
            why="a layer cannot be empty",
            do="keep at least one",
        )
    return dim, mask.detach().cpu().numpy()


def _of_single_weights(weight: torch.Tensor, dim: int, mask: torch.Tensor) -> str:
    """A hint for a mask that has the shape of the weight; "" for any other."""
    if mask.shape != weight.shape:
        return ""
    rows = "mask.flatten(1).any(1)" if dim == 0 else f"mask.movedim({dim}, 0).flatten(1).any(1)"
    return f", as {rows} is where an output keeps some weight; masks of single weights are for fxprune.sparse"


def _of_all_groups(keep: Bools, slots: int) -> Bools:
    """The mask of the slots of a weight's output dimension. It drops a slot that all groups drop.

    A transposed convolution with groups has out_channels / groups slots there: each is an output of every group.
    keep: [groups x slots], True = keep.
    """
    return np.asarray(keep.reshape(-1, slots).any(0))


def why_stay(findings: Findings, outputs: tuple[str, int], columns: list[Ints], left: Ints, held: Bools) -> str:
    """The reason why masked channels of a layer stay.

    outputs: the parameter and the dimension of the mask. columns: the channels in its slots. left: the slots that stay.
    held: flags of the channels that must.
    """
    channels = [column[left][column[left] >= 0] for column in columns]
    if any(held[found].any() for found in channels):
        return "their group is ignored, or inexact under exact=True"
    if any(len(found) for found in channels):
        return (
            "this dimension is a grid (conv groups, heads): only whole rows or columns of it can go, so mask all "
            "channels of a head, or the same ones in each head"
        )
    if not findings.reads(outputs[0]):
        return "forward does not use the layer"
    events = dict.fromkeys(str(locked.event) for locked in findings.locked if outputs in locked.slots)
    return "; ".join(events) or "the slots of this dimension are never channels, as in the height of a kernel"
