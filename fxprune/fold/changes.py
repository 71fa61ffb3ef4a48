"""The numbers to add to parameters, so that these take up the constants of removed channels.

There are three places for them: a bias, the column of a carrier in a weight, and a map that is added to a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np
import torch

from fxprune.channels.groups import Bools, Ints
from fxprune.fold.reading import BorderedReading, ProductReading

ROUNDING = 1e-12
"""Two constants whose relative difference is at most this are the same number; the rest is rounding."""


@dataclass(frozen=True)
class Changes:
    """Computes the changes that a reading makes, once it is known which channels are removed.

    maps: where zeros are padded, add a map to the result instead of keeping a carrier.
    places: names of biases and nodes that always get a bias or a map, even if every constant is zero.
    shapes: the shape of each parameter, by name. uses: the number of readings of each weight, by its name.

    In all methods, `gone` are flags of the slots of the reading's dimension: True for those that are removed.
    """

    maps: bool
    places: Set[str]
    shapes: Mapping[str, torch.Size]
    uses: Mapping[str, int] = field(default_factory=dict)

    def uses_map(self, reading: ProductReading) -> bool:
        """True if the constants of this reading become a map that is added to its result."""
        return self.maps and bool(reading.map_node)

    def can_take_up(self, reading: ProductReading) -> bool:
        """True if the reading has a bias, a weight or a map that can take constants up."""
        return bool(reading.bias.name or reading.weight or self.uses_map(reading))

    def needs_carrier(self, reading: ProductReading, gone: Bools) -> Bools:
        """Flags of the reading's constants: True if the constant is removed and only a carrier can take it up."""
        removed = gone[reading.constants.slots]
        if self.uses_map(reading):
            return np.zeros_like(removed)
        return removed if reading.carrier_only else removed & ~reading.constants.uniform

    def of(self, reading: ProductReading, gone: Bools) -> dict[str, torch.Tensor]:
        """The change to add to each parameter, by name, and to the result of a node, by the node's name.

        A weight that several readings use gets an entry even if the change is zero: all of them must agree.
        """
        constants = reading.constants
        removed = gone[constants.slots]
        if isinstance(reading, BorderedReading) and self.uses_map(reading):
            wanted = removed.any() or reading.map_node in self.places
            return {reading.map_node: reading.map_of(removed)} if wanted else {}
        changes: dict[str, torch.Tensor] = {}
        carried = self.needs_carrier(reading, gone)
        if reading.bias.name:
            chosen = torch.from_numpy(removed & ~carried)
            changes[reading.bias.name] = constants.columns[:, chosen].sum(2) @ constants.planes[chosen][:, 0]
        if reading.weight and (carried.any() or self.uses[reading.weight] > 1):
            columns = _carried_columns(reading, removed, carried)
            changes[reading.weight] = _as_weight(columns, self.shapes[reading.weight], reading)
        return changes


def carrier(reading: ProductReading, candidates: Bools) -> int | None:
    """The number of the largest constant among the candidates, None if there is no candidate that is large enough.

    candidates: flags of the reading's constants. The others are divided by the carrier's constant, so one that is less
    than a thousandth of the reading's largest would be inexact.
    """
    found = np.flatnonzero(candidates)
    if not len(found):
        return None
    sizes = reading.constants.sizes
    best = int(found[np.argmax(sizes[found])])
    return best if sizes[best] >= 1e-3 * sizes.max() else None


def ratios(planes: torch.Tensor, carrier: int, others: Ints) -> tuple[torch.Tensor, Bools]:
    """The factor of each other plane to the carrier's, and whether the plane is that multiple at all positions.

    planes: the constants at all positions, [constants, positions]. carrier, others: numbers of constants.
    """
    base = planes[carrier]
    rows = planes[torch.from_numpy(others)]
    at = int(base.abs().argmax())
    times = rows[:, at] / base[at]
    apart = (rows - times[:, None] * base).abs().amax(1)
    return times, (apart <= ROUNDING * rows.abs().amax(1)).cpu().numpy()


def _carried_columns(reading: ProductReading, removed: Bools, carried: Bools) -> torch.Tensor:
    """The change of the weight, [out, slots of all blocks, taps]: in each block, the carrier's column takes the others.

    removed, carried: flags of the reading's constants, those that are removed and those that a carrier takes up.
    """
    constants, columns = reading.constants, reading.constants.columns
    change = columns.new_zeros(columns.shape[0], reading.vector.size, columns.shape[2])
    for block in np.unique(reading.block[carried]):
        inside = reading.block == block
        chosen = carrier(reading, inside & ~removed)
        assert chosen is not None
        others = np.flatnonzero(inside & carried)
        times, _ = ratios(constants.planes, chosen, others)
        added = torch.einsum("ost,s->ot", columns[:, torch.from_numpy(others)], times)
        change[:, int(constants.slots[chosen])] += added
    return change


def _as_weight(change: torch.Tensor, shape: torch.Size, reading: ProductReading) -> torch.Tensor:
    """Bring a change [out, slots of all blocks, taps] to the shape of the weight.

    In the weight, the outputs of a block have columns for the slots of their own block only.
    """
    blocks = reading.blocks
    split = change.view(blocks, change.shape[0] // blocks, blocks, -1, change.shape[2])
    every = torch.arange(blocks)
    own = split[every, :, every]  # [blocks, out of a block, slots of a block, taps]
    return (own.transpose(1, 2) if reading.transposed else own).reshape(shape)
