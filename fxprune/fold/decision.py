"""The choice of channels that can be removed, and of carriers among those that stay.

A channel is *given up* if it cannot be removed exactly: it stays, with its weights. A *carrier* stays too, without its
weights: it is a constant, and its column in the weight of the next layer takes up the constants of others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools, Ints, Removal
from fxprune.fold.changes import ROUNDING, Changes, carrier, ratios
from fxprune.fold.reading import ProductReading, Reading


@dataclass
class Decision:
    """The channels to remove and the carriers, as far as they are decided; `settle` changes them step by step.

    removed, carriers: flags of the channels. reasons: channel -> why it stays.
    keep: a function that clears flags in `removed`, in place, where a dimension would be empty otherwise.
    changes: computes the numbers to add.
    products: the readings that can take constants up. others: those that cannot.
    """

    findings: Findings
    removed: Bools
    keep: Callable[[Bools], None]
    changes: Changes
    products: Sequence[ProductReading] = ()
    others: Sequence[Reading] = ()
    carriers: Bools = field(init=False)
    reasons: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.carriers = np.zeros_like(self.removed)

    def gave_up_since(self, before: Bools) -> bool:
        """True if channels were given up since `before`, flags of the removed channels at an earlier time.

        Their weights are not zero in the reference, so that it has to run again.
        """
        return bool((before & ~self.removed & ~self.carriers).any())

    def settle(self, readings: Sequence[Reading]) -> None:
        """Give up channels and choose carriers, until every removed channel can be removed exactly.

        Each step may make another one necessary, so all readings are checked again after every change. Channels are
        only ever taken out of `removed`, so this ends.
        """
        self.products = [reading for reading in readings if isinstance(reading, ProductReading)]
        self.others = [reading for reading in readings if not isinstance(reading, ProductReading)]
        self.changes = replace(self.changes, uses=Counter(reading.weight for reading in self.products))
        while True:
            removal = Removal(self.findings.solution, self.removed)
            gone = [self.removed_and_read(reading, removal) for reading in self.products]
            given = [self._give_up_unfit(r, g) for r, g in zip(self.products, gone, strict=True)]
            given += [self._give_up(r, self.removed_and_read(r, removal) & r.bad, r.why) for r in self.others]
            if any(given):
                continue
            worth = self._worth_as_carrier(gone)
            if any(self._find_carriers(r, g, worth) for r, g in zip(self.products, gone, strict=True)):
                continue
            if self._give_up_contradictions(gone):
                continue
            before = self.removed.copy()
            self.keep(self.removed)
            if (before == self.removed).all():
                return
            self._note(before & ~self.removed, "a dimension would be empty without it")

    def removed_and_read(self, reading: Reading, removal: Removal) -> Bools:
        """Flags of the reading's slots: True if the slot is removed and an output that stays reads it."""
        kept = removal.kept(reading.vector)
        gone = np.zeros(reading.vector.size, dtype=bool) if kept is None else ~kept
        if gone.any():
            out = reading.out if isinstance(reading, ProductReading) else None
            gone &= reading.read_by(None if out is None else removal.kept(out))
        return gone

    # -- one reading --------------------------------------------------------------------------------------

    def _give_up_unfit(self, reading: ProductReading, gone: Bools) -> bool:
        """Give up channels that are not constant, and constants that nothing can take up; True if there were any."""
        given = self._give_up(reading, gone & reading.bad, reading.why)
        if not self.changes.can_take_up(reading):
            constant = reading.flags(gone[reading.constants.slots])
            given |= self._give_up(reading, constant, "no bias there can take its constant up")
        return given

    def _worth_as_carrier(self, gone: list[Bools]) -> Any:
        """The worth of each channel as a carrier, in [0, 1], float64 [channels].

        It is the size of the channel's constant, relative to the largest one that needs a carrier in the same reading;
        of several readings the worst counts.
        """
        weakest = np.ones(len(self.removed))
        for reading, flags in zip(self.products, gone, strict=True):
            needs, constants = self.changes.needs_carrier(reading, flags), reading.constants
            if needs.any() and reading.weight:
                sizes = np.zeros(reading.vector.size)
                sizes[constants.slots] = constants.sizes
                sizes /= sizes[constants.slots[needs]].max()
                for column in self.findings.solution.channels_of(reading.vector):
                    at = flags & (column >= 0)
                    np.minimum.at(weakest, column[at], sizes[at])
        return weakest

    def _find_carriers(self, reading: ProductReading, gone: Bools, worth: Any) -> bool:
        """Find a carrier in every block that needs one; True if anything changed.

        Where no constant channel stays, the best removed one becomes the carrier. Constants that are no multiple of it
        are given up.
        """
        removed, needs = gone[reading.constants.slots], self.changes.needs_carrier(reading, gone)
        if not needs.any():
            return False
        if not reading.weight:
            return self._give_up(reading, reading.flags(needs), "its constant is not the same everywhere")
        for block in np.unique(reading.block[needs]):
            inside = reading.block == block
            chosen = carrier(reading, inside & ~removed)
            if chosen is None:
                every = np.flatnonzero(inside & needs)
                best = [worth[self._channels(reading, reading.constants.slots[[k]])].min() for k in every]
                self._keep_as_carrier(reading, int(every[np.argmax(best)]))
                return True
            others = np.flatnonzero(inside & needs)
            _, proportional = ratios(reading.constants.planes, chosen, others)
            if not proportional.all():
                apart = np.zeros_like(needs)
                apart[others[~proportional]] = True
                return self._give_up(reading, reading.flags(apart), "no constant channel has its pattern, to carry it")
        return False

    def _keep_as_carrier(self, reading: ProductReading, chosen: int) -> None:
        for channel in self._channels(reading, reading.constants.slots[[chosen]]):
            self.removed[channel] = False
            self.carriers[channel] = True
            self.reasons[channel] = (
                f"it carries the constants of others into {reading.at}, where they are not the same everywhere"
            )

    def _channels(self, reading: Reading, slots: Any) -> Ints:
        """The removed channels that have one of these slots of a reading. slots: flags or numbers."""
        columns = self.findings.solution.channels_of(reading.vector)
        found = np.concatenate([column[slots] for column in columns]) if columns else np.zeros(0, dtype=np.int64)
        found = np.unique(found[found >= 0])
        return found[self.removed[found]]

    def _give_up(self, reading: Reading, wrong: Bools, why: str) -> bool:
        """Give up the channels in the slots that `wrong` flags; True if any of them was removed until now."""
        if not wrong.any():
            return False
        given = np.zeros_like(self.removed)
        given[self._channels(reading, wrong)] = True
        self.removed[given] = False
        self._note(given, f"read by {reading.at}: {why}")
        return bool(given.any())

    def _note(self, channels: Bools, why: str) -> None:
        for channel in np.flatnonzero(channels):
            self.reasons.setdefault(int(channel), why)

    # -- all readings -------------------------------------------------------------------------------------

    def _give_up_contradictions(self, gone: list[Bools]) -> bool:
        """Give up the channels of two readings that would change one parameter differently; True if there were any."""
        made: dict[str, tuple[int, torch.Tensor]] = {}
        for number, (reading, removed) in enumerate(zip(self.products, gone, strict=True)):
            for name, change in self.changes.of(reading, removed).items():
                first, before = made.setdefault(name, (number, change))
                scale = max(float(before.abs().max()), float(change.abs().max()))
                if before.shape == change.shape and float((before - change).abs().max()) <= ROUNDING * scale:
                    continue
                why = f"{name} is shared by readings that would change it differently"
                both = [(self.products[n], gone[n][self.products[n].constants.slots]) for n in (first, number)]
                slots = [(reader, reader.flags(chosen)) for reader, chosen in both]
                given = [self._give_up(reader, flags, why) for reader, flags in slots]
                if any(given):
                    return True
        return False
