"""Which pruned outputs are zero where they are read, and which share their place with outputs that are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.channels.groups import Bools
from fxprune.findings import Findings, Group, Member


def removable(findings: Findings, masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The masks without the outputs that share their place with others that are not zero, and why those stay.

    A channel of a residual sum is zero only where every layer that writes it has a row of zeros; with one of them
    pruned, it carries what the others write. A slot of a grid (conv groups) goes with its row or with its column: it
    is free if either is.

    Args:
        findings: of the model with zeros in its weights, without machinery.
        masks: layer -> bool mask, True = keep.
    """
    layers = _parameters(findings, masks)
    fed: dict[str, Bools] = {name: np.zeros(len(mask), dtype=bool) for name, mask in masks.items()}
    free: dict[str, Bools] = {name: np.zeros(len(mask), dtype=bool) for name, mask in masks.items()}
    by: dict[str, dict[str, None]] = {name: {} for name in masks}
    for group, ours in _masked_groups(findings, layers):
        written = {m.parameter: _written(group, m) for m in _writers(findings, group)}
        alive = np.any([np.zeros(group.size, dtype=bool), *written.values()], axis=0)
        for member in ours:
            name = layers[member.parameter]
            fed[name][member.slots] |= alive[member.index]
            free[name][member.slots] |= ~alive[member.index]
            dropped = member.index[~masks[name].cpu().numpy()[member.slots]]
            by[name].update((parameter, None) for parameter, channels in written.items() if channels[dropped].any())
    asked, reasons = {}, []
    for name, mask in masks.items():
        if name not in layers.values():
            reasons.append(f'"{name}": its {int((~mask).sum())} masked channels stay: forward does not use the layer')
            continue
        back = torch.from_numpy(fed[name] & ~free[name]).to(mask.device) & ~mask
        asked[name] = mask | back
        if back.any():
            stay = back.nonzero().flatten().tolist()
            listed = ", ".join(map(str, stay[:6])) + (", ..." if len(stay) > 6 else "")
            others = ", ".join(f'"{parameter}"' for parameter in list(by[name])[:4])
            why = f"they are not zero in {others}"
            reasons.append(f'"{name}": {len(stay)} masked channels stay ({listed}): {why}')
    return asked, reasons


def _parameters(findings: Findings, masks: Mapping[str, Tensor]) -> dict[str, str]:
    """The weight of each masked layer -> the layer's name."""
    canonical = {alias: name for name, aliases in findings.aliases.items() for alias in aliases}
    named = {canonical.get(f"{name}.weight", f"{name}.weight"): name for name in masks}
    return {parameter: name for parameter, name in named.items() if parameter in findings.tensors}


def _masked_groups(findings: Findings, layers: Mapping[str, str]) -> Iterator[tuple[Group, list[Member]]]:
    """The groups in which masked layers have outputs, with those members."""
    for group in findings.groups:
        ours = [m for m in group.members if m.parameter in layers and findings.opens(m.parameter, m.dim)]
        if ours:
            yield group, ours


def _writers(findings: Findings, group: Group) -> Iterator[Member]:
    """The members whose zeros make a channel zero.

    Not a depthwise convolution: what it writes, it has read in the same channel.
    """
    for member in group.members:
        owner: Any = findings.owner(member.parameter)
        through = isinstance(owner, nn.modules.conv._ConvNd) and owner.groups == owner.in_channels
        if member.tensor.ndim > 1 and findings.opens(member.parameter, member.dim) and not through:
            yield member


def _written(group: Group, member: Member) -> Bools:
    """Per channel, whether a member holds anything but zeros in its slots."""
    slots = (member.tensor.detach() != 0).movedim(member.dim, 0).flatten(1).any(1).cpu().numpy()
    channels = np.zeros(group.size, dtype=bool)
    channels[member.index[slots[member.slots]]] = True
    return channels
