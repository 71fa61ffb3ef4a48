"""Samples that come again: those that judge a repair say nothing of it if they are among those that it fits.

Held-out samples of their own make the ridge large where a layer saw few rows, and take the refit back where it does not
help. Copies of what was fitted do neither: a layer with few distinct rows then passes every one of them without error,
and may be far worse on others than it was. `docs/choosing.md` has figures.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune._repair.batches import DataPart
from fxprune.errors import counted, level_of_user
from fxprune.running.inputs import samples_of
from fxprune.running.processes import Processes

FEW = 2
"""With fewer held-out samples than these, what they say of a repair is chance, which another warning says."""

ENOUGH = 2
"""Distinct rows for each input of a layer, with which it is no worse on other inputs whatever the ridge."""

ELEMENTS = 4096
"""The number of elements of a larger tensor that tell a sample from others."""


@dataclass(frozen=True)
class Repeats:
    """The samples that a repair fits, and the distinct ones of them; those that judge it, and which of them it fits."""

    fitted: int
    distinct: int
    judges: int
    known: int


@dataclass(frozen=True)
class Rows:
    """The rows that a layer was refitted on, and the inputs that it keeps."""

    count: int
    inputs: int


def repeats_in(parts: Sequence[DataPart], processes: Processes) -> Repeats:
    """The counts of the samples of all processes."""
    found = processes.all([(part.held, key) for part in parts for key in _keys_of(part)])
    everything = [pair for some in found for pair in some]
    fitted, judges = ([key for held, key in everything if held == wanted] for wanted in (False, True))
    distinct = {*fitted}
    return Repeats(len(fitted), len(distinct), len(judges), sum(key in distinct for key in judges))


def warn_of_repeats(repeats: Repeats, rows: Mapping[str, Rows]) -> None:
    """Warns, once, if most judges are among the samples that were fitted, and a layer saw too few distinct rows.

    rows: of each layer that has another weight now, by name.
    """
    if repeats.judges < FEW or 2 * repeats.known <= repeats.judges:
        return
    share = repeats.distinct / repeats.fitted
    few = {name: int(one.count * share) for name, one in rows.items() if one.count * share < ENOUGH * one.inputs}
    if not few:
        return
    name = min(few, key=lambda layer: few[layer] / rows[layer].inputs)
    saw = f'"{name}" keeps {counted(rows[name].inputs, "input")} and saw {counted(few[name], "distinct row")}'
    more = f" ({counted(len(few) - 1, 'further layer')} like it)" if few.keys() - {name} else ""
    text = (
        f"{repeats.known} of the {counted(repeats.judges, 'sample')} that judge the repair are among the "
        f"{counted(repeats.distinct, 'distinct sample')} that it fits, and show nothing of other inputs: {saw}{more}. "
        "The small model may be worse than before on others. Pass distinct samples, some hundred"
    )
    warnings.warn(text, UserWarning, stacklevel=level_of_user())


def _keys_of(part: DataPart) -> list[bytes]:
    return [_key(sample) for sample in samples_of(part.inputs)]


def _key(sample: object) -> bytes:
    """A digest of the numbers of a sample."""
    made = hashlib.blake2b(digest_size=16)
    for leaf in pytree.tree_leaves(sample):
        if isinstance(leaf, Tensor):
            flat = leaf.detach().reshape(-1)
            few = flat[:: -(-flat.numel() // ELEMENTS) or 1].to("cpu")
            made.update(few.to(torch.complex128 if few.is_complex() else torch.float64).numpy().tobytes())
        else:
            made.update(repr(leaf).encode())
    return made.digest()
