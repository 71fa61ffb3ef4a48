"""The changes of parameters that take the constants of removed channels up: a bias, a carrier's column, or a map."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np
import torch

from fxprune.channels.groups import Bools, Ints
from fxprune.fold.reading import BorderedReading, ProductReading

ROUNDING = 1e-12
"""The relative difference of two constants that are the same but for rounding."""


@dataclass(frozen=True)
class Changes:
    """The changes that a reading makes.

    maps: add a map where zeros are padded, instead of a carrier.
    places: the biases and nodes that take constants up even if all of these are zero.
    shapes: those of parameters. uses: how many readings each weight has.
    """

    maps: bool
    places: Set[str]
    shapes: Mapping[str, torch.Size]
    uses: Mapping[str, int] = field(default_factory=dict)

    def mapped(self, reading: ProductReading) -> bool:
        """True if constants become a map that is added to the result."""
        return self.maps and bool(reading.result)

    def possible(self, reading: ProductReading) -> bool:
        """True if there is a place that takes constants up."""
        return bool(reading.bias.name or reading.weight or self.mapped(reading))

    def needs(self, reading: ProductReading, gone: Bools) -> Bools:
        """The constants of removed slots that need a carrier."""
        going = gone[reading.constants.slots]
        if self.mapped(reading):
            return np.zeros_like(going)
        return going if reading.carried else going & ~reading.constants.uniform

    def of(self, reading: ProductReading, gone: Bools) -> dict[str, torch.Tensor]:
        """Parameter -> the change to add to it; changes of zero too, which are compared with other uses."""
        constants = reading.constants
        going = gone[constants.slots]
        if isinstance(reading, BorderedReading) and self.mapped(reading):
            wanted = going.any() or reading.result in self.places
            return {reading.result: reading.mapped(going)} if wanted else {}
        changes: dict[str, torch.Tensor] = {}
        carried = self.needs(reading, gone)
        if reading.bias.name:
            chosen = torch.from_numpy(going & ~carried)
            changes[reading.bias.name] = constants.columns[:, chosen].sum(2) @ constants.planes[chosen][:, 0]
        if reading.weight and (carried.any() or self.uses[reading.weight] > 1):
            columns = _carried_columns(reading, going, carried)
            changes[reading.weight] = _as_weight(columns, self.shapes[reading.weight], reading)
        return changes


def carrier(reading: ProductReading, candidates: Bools) -> int | None:
    """The strongest of some constants; None if there is none that is not tiny beside the others."""
    found = np.flatnonzero(candidates)
    if not len(found):
        return None
    sizes = reading.constants.sizes
    best = int(found[np.argmax(sizes[found])])
    return best if sizes[best] >= 1e-3 * sizes.max() else None


def ratios(planes: torch.Tensor, carrier: int, others: Ints) -> tuple[torch.Tensor, Bools]:
    """The other planes as multiples of the carrier's, and for each whether it is a multiple at all positions."""
    base = planes[carrier]
    rows = planes[torch.from_numpy(others)]
    at = int(base.abs().argmax())
    made = rows[:, at] / base[at]
    apart = (rows - made[:, None] * base).abs().amax(1)
    return made, (apart <= ROUNDING * rows.abs().amax(1)).cpu().numpy()


def _carried_columns(reading: ProductReading, going: Bools, carried: Bools) -> torch.Tensor:
    """The change to add to the weight [out, slots of all blocks, taps]."""
    constants, columns = reading.constants, reading.constants.columns
    made = columns.new_zeros(columns.shape[0], reading.vector.size, columns.shape[2])
    for block in np.unique(reading.block[carried]):
        inside = reading.block == block
        chosen = carrier(reading, inside & ~going)
        assert chosen is not None
        others = np.flatnonzero(inside & carried)
        times, _ = ratios(constants.planes, chosen, others)
        added = torch.einsum("ost,s->ot", columns[:, torch.from_numpy(others)], times)
        made[:, int(constants.slots[chosen])] += added
    return made


def _as_weight(change: torch.Tensor, shape: torch.Size, reading: ProductReading) -> torch.Tensor:
    """[out, slots of all blocks, taps] in the shape of the weight: a block's outputs have its slots only."""
    blocks = reading.blocks
    split = change.view(blocks, change.shape[0] // blocks, blocks, -1, change.shape[2])
    every = torch.arange(blocks)
    own = split[every, :, every]  # [blocks, out of a block, slots of a block, taps]
    return (own.transpose(1, 2) if reading.transposed else own).reshape(shape)
