"""Folding: the constants of removed channels go into biases, carriers or maps.

A layer that reads channel k with the constant c_k computes y[o] = ... + sum_k W[o, k] c_k. That sum goes into its bias.
Where zeros are padded around the channel it is another one near the border; then one of the constant channels, the
*carrier* 0, stays and takes the others along: W'[o, 0] = W[o, 0] + sum_k W[o, k] c_k / c_0. Its own layer has zero
weights, and emits c_0 by the bias and the shifts that are there anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fxprune.analysis.after_removal import kept_slots
from fxprune.analysis.findings import Findings
from fxprune.analysis.folded_constants import Constants, bias_name
from fxprune.channels.groups import Bools, Ints, Removal
from fxprune.fold.readings import Reading, read
from fxprune.ops.layers import weight_output_dim
from fxprune.proof.masked_reference import zero_slots
from fxprune.rewrite.norms import rescaled
from fxprune.rewrite.tensors import cut

Removed = dict[str, dict[int, list[int]]]

ROUNDING = 1e-12
"""How far two constants may be apart, relatively, that are the same but for rounding."""


@dataclass(frozen=True)
class Folding:
    """The channels to remove, and the changes of the rest.

    removed: the channels to remove. carriers: those that stay to carry the others' constants.
    zeroed: the slots that the reference sets to zero.
    constants: the new values of the tensors that take constants up. reasons: channel -> why it stays.
    """

    removed: Bools
    carriers: Bools
    zeroed: Removed
    constants: Constants
    reasons: Mapping[int, str]


def zeroed_by(findings: Findings, removed: Bools) -> Removed:
    """The output slots that the removed channels have in every layer's weight: these are "their weights"."""
    removal, zeroed = Removal(findings.solution, removed), {}
    for axis in findings.axes:
        if axis.parameter in findings.tensors and axis.dim == opened(findings, axis.parameter):
            kept = removal.kept(axis.vector)
            if kept is not None:
                for name in findings.names_of(axis.parameter):
                    zeroed[name] = {axis.dim: np.flatnonzero(~kept).tolist()}
    return zeroed


def opened(findings: Findings, parameter: str) -> int | None:
    """The output dimension of a layer's weight, None for anything else."""
    name, ndim = parameter.rpartition(".")[2], findings.tensors[parameter].ndim
    return weight_output_dim(findings.owner(parameter), name, ndim)


def fold(
    findings: Findings,
    removed: Bools,
    zeroed: Removed | None,
    keep: Callable[[Bools], None],
    *,
    maps: bool = False,
    places: Set[str] = frozenset(),
) -> Folding:
    """Choose as many of the channels in `removed` as can be removed exactly.

    Args:
        maps: add a map of constants where zeros are padded, instead of a carrier.
        places: the biases and nodes that take constants up even if all of these are zero.
        zeroed: the slots that the reference sets to zero; None for the weights of the channels in `removed`.
        keep: takes away from the removed channels, in place, those without which a dimension would be empty.
    """
    decision = _Decision(findings, removed.copy(), keep, maps, places)
    while True:
        before = decision.removed.copy()
        decision.readings = read(findings, decision.zeroed() if zeroed is None else zeroed)
        decision.settle()
        if zeroed is not None or (decision.removed == before).all() or not decision.removed.any():
            break
        if not decision.lost(before):  # carriers only: what is zero is what it was
            break
    return decision.folding(decision.zeroed() if zeroed is None else zeroed)


@dataclass
class _Decision:
    """Removed channels, carriers among those that stay, and the reasons why others stay."""

    findings: Findings
    removed: Bools
    keep: Callable[[Bools], None]
    maps: bool
    places: Set[str]
    readings: list[Reading] = field(default_factory=list)
    carriers: Bools = field(init=False)
    uses: Counter[str] = field(default_factory=Counter)
    reasons: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.carriers = np.zeros_like(self.removed)

    def zeroed(self) -> Removed:
        """The weights of removed channels and of carriers."""
        return zeroed_by(self.findings, self.removed | self.carriers)

    def lost(self, before: Bools) -> bool:
        """True if channels were given up since, so that their weights stay as well."""
        return bool((before & ~self.removed & ~self.carriers).any())

    def settle(self) -> None:
        """Give up channels that cannot be removed, and choose carriers, until no reading needs the others."""
        self.uses = Counter(reading.weight for reading in self.readings)
        while True:
            removal = Removal(self.findings.solution, self.removed)
            gone = [self._gone(reading, removal) for reading in self.readings]
            given = [self._refuse(r, g) for r, g in zip(self.readings, gone, strict=True)]
            if any(given):
                continue
            strength = self._strength(gone)
            if any(self._carry(r, g, strength) for r, g in zip(self.readings, gone, strict=True)):
                continue
            if self._contradiction(gone):
                continue
            before = self.removed.copy()
            self.keep(self.removed)
            if (before == self.removed).all():
                return
            self._note(before & ~self.removed, "a dimension would be empty without it")

    # -- one reading --------------------------------------------------------------------------------------

    def _gone(self, reading: Reading, removal: Removal) -> Bools:
        """The removed slots that kept outputs read."""
        kept = removal.kept(reading.vector)
        gone = np.zeros(reading.vector.size, dtype=bool) if kept is None else ~kept
        if gone.any():
            gone &= reading.read_by(None if reading.out is None else removal.kept(reading.out))
        return gone

    def _refuse(self, reading: Reading, gone: Bools) -> bool:
        """Give up channels that are not constant, and constants that nothing can take up."""
        given = self._give_up(reading, gone & reading.bad, reading.why)
        if not (reading.bias or reading.weight or self._mapped(reading)):
            constant = self._slots(reading, gone[reading.slots])
            given |= self._give_up(reading, constant, "no bias there can take its constant up")
        return given

    def _mapped(self, reading: Reading) -> bool:
        """True if constants become a map that is added to the result."""
        return self.maps and reading.bordered and bool(reading.result)

    def _carried(self, reading: Reading) -> bool:
        """True if constants are added to a carrier's column: near a border, or where they differ by position."""
        return reading.bordered or not reading.bias

    def _needs(self, reading: Reading, gone: Bools) -> Bools:
        """The constants of removed slots that need a carrier."""
        going = gone[reading.slots]
        if self._mapped(reading):
            return np.zeros_like(going)
        return going if self._carried(reading) else going & ~reading.uniform

    def _strength(self, gone: list[Bools]) -> Any:
        """Per channel its constant over the largest, in the reading where that is least: its worth as a carrier."""
        weakest = np.ones(len(self.removed))
        for reading, going in zip(self.readings, gone, strict=True):
            needs = self._needs(reading, going)
            if needs.any() and reading.weight:
                sizes = np.zeros(reading.vector.size)
                sizes[reading.slots] = _size(reading.planes)
                sizes /= sizes[reading.slots[needs]].max()
                for column in self.findings.solution.channels_of(reading.vector):
                    at = going & (column >= 0)
                    np.minimum.at(weakest, column[at], sizes[at])
        return weakest

    def _carry(self, reading: Reading, gone: Bools, strength: Any) -> bool:
        """Keep one channel of every block as carrier, and those that it cannot carry; True if anything changed."""
        going, needs = gone[reading.slots], self._needs(reading, gone)
        if not needs.any():
            return False
        if not reading.weight:
            return self._give_up(reading, self._slots(reading, needs), "its constant is not the same everywhere")
        for block in np.unique(self._block(reading)[needs]):
            inside = self._block(reading) == block
            chosen = self._carrier(reading, inside & ~going)
            if chosen is None:
                every = np.flatnonzero(inside & needs)
                best = [strength[self._channels(reading, reading.slots[[k]])].min() for k in every]
                self._keep_as_carrier(reading, int(every[np.argmax(best)]))
                return True
            others = np.flatnonzero(inside & needs)
            _, proportional = _ratios(reading.planes, chosen, others)
            if not proportional.all():
                apart = np.zeros(len(reading.slots), dtype=bool)
                apart[others[~proportional]] = True
                return self._give_up(
                    reading, self._slots(reading, apart), "no constant channel has its pattern, to carry it"
                )
        return False

    def _carrier(self, reading: Reading, candidates: Bools) -> int | None:
        """The strongest constant that stays; None if there is none that is not tiny beside the others."""
        found = np.flatnonzero(candidates)
        if not len(found):
            return None
        sizes = _size(reading.planes)
        best = int(found[np.argmax(sizes[found])])
        return best if sizes[best] >= 1e-3 * sizes.max() else None

    def _keep_as_carrier(self, reading: Reading, chosen: int) -> None:
        for channel in self._channels(reading, reading.slots[[chosen]]):
            self.removed[channel] = False
            self.carriers[channel] = True
            self.reasons[channel] = (
                f"it carries the constants of others into {reading.at}, where they are not the same everywhere"
            )

    def _block(self, reading: Reading) -> Ints:
        return reading.slots // (reading.vector.size // reading.blocks)

    def _slots(self, reading: Reading, chosen: Bools) -> Bools:
        flags = np.zeros(reading.vector.size, dtype=bool)
        flags[reading.slots[chosen]] = True
        return flags

    def _channels(self, reading: Reading, slots: Any) -> Ints:
        """The removed channels that have some slots of a reading."""
        columns = self.findings.solution.channels_of(reading.vector)
        found = np.concatenate([column[slots] for column in columns]) if columns else np.zeros(0, dtype=np.int64)
        found = np.unique(found[found >= 0])
        return found[self.removed[found]]

    def _give_up(self, reading: Reading, wrong: Bools, why: str) -> bool:
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

    def _contradiction(self, gone: list[Bools]) -> bool:
        """True if two readings change the same parameter in different ways; the channels of both stay then."""
        made: dict[str, tuple[int, torch.Tensor]] = {}
        for number, (reading, going) in enumerate(zip(self.readings, gone, strict=True)):
            for name, change in self._changes(reading, going).items():
                first, before = made.setdefault(name, (number, change))
                scale = max(float(before.abs().max()), float(change.abs().max()))
                if before.shape == change.shape and float((before - change).abs().max()) <= ROUNDING * scale:
                    continue
                why = f"{name} is shared by readings that would change it differently"
                slots = [self._slots(self.readings[n], gone[n][self.readings[n].slots]) for n in (first, number)]
                given = [self._give_up(self.readings[n], s, why) for n, s in zip((first, number), slots, strict=True)]
                if any(given):
                    return True
        return False

    def _changes(self, reading: Reading, gone: Bools) -> dict[str, torch.Tensor]:
        """Parameter -> the change to add to it; changes of zero too, which are compared with other uses."""
        going = gone[reading.slots]
        changes: dict[str, torch.Tensor] = {}
        if self._mapped(reading):
            wanted = going.any() or reading.result in self.places
            return {reading.result: reading.mapped(going)} if wanted else {}
        into_carrier = going if self._carried(reading) else going & ~reading.uniform
        if reading.bias:
            chosen = torch.from_numpy(going & ~into_carrier)
            constants = reading.planes[chosen][:, 0]
            changes[reading.bias] = reading.columns[:, chosen].sum(2) @ constants
        if reading.weight and (into_carrier.any() or self.uses[reading.weight] > 1):
            shape = self.findings.tensors[reading.weight].shape
            changes[reading.weight] = _as_weight(self._carried_columns(reading, going, into_carrier), shape, reading)
        return changes

    def _carried_columns(self, reading: Reading, going: Bools, carried: Bools) -> torch.Tensor:
        """The change to add to the weight [out, slots of all blocks, taps]."""
        made = reading.columns.new_zeros(reading.columns.shape[0], reading.vector.size, reading.columns.shape[2])
        for block in np.unique(self._block(reading)[carried]):
            inside = self._block(reading) == block
            chosen = self._carrier(reading, inside & ~going)
            assert chosen is not None
            others = np.flatnonzero(inside & carried)
            ratios, _ = _ratios(reading.planes, chosen, others)
            added = torch.einsum("ost,s->ot", reading.columns[:, torch.from_numpy(others)], ratios)
            made[:, int(reading.slots[chosen])] += added
        return made

    def folding(self, zeroed: Removed) -> Folding:
        """The result, with every parameter that changes."""
        removal = Removal(self.findings.solution, self.removed)
        values: dict[str, torch.Tensor] = {}
        biases: dict[str, torch.Tensor] = {}
        maps: dict[str, torch.Tensor] = {}

        def value(name: str) -> torch.Tensor:
            if name not in values:
                values[name] = self.findings.tensors[name].detach().to(torch.float64, copy=True)
                zero_slots(values[name], zeroed.get(name, {}))
            return values[name]

        own = rescaled(self.findings, removal)  # norms that go on counting their width have numbers of their own
        for name in (zeroed.keys() & self.findings.tensors.keys()) - own.keys():
            if self._still_there(name, zeroed[name], removal):
                value(name)
        done: set[str] = set()
        for reading in self.readings:
            for name, change in self._changes(reading, self._gone(reading, removal)).items():
                wanted = bias_name(name) if reading.new and name.startswith("%") else name
                if name in done or not (wanted in self.places or bool((change != 0).any())):
                    continue
                done.add(name)
                if name == reading.result:
                    maps[name] = self._left(change, reading, removal)
                elif name == reading.bias and reading.new:
                    layer = name if name.startswith("%") else name.removesuffix(".bias")
                    biases[layer] = self._left(change, reading, removal)
                else:
                    value(name).add_(change)
        kept = kept_slots(self.findings, removal)
        made = {
            alias: cut(tensor, kept.get(name, {}))
            for name, tensor in values.items()
            for alias in self.findings.names_of(name)
        }
        return Folding(self.removed, self.carriers, zeroed, Constants(made, biases, maps), self.reasons)

    def _left(self, change: torch.Tensor, reading: Reading, removal: Removal) -> torch.Tensor:
        """The numbers of the kept outputs, [out, ...]."""
        kept = None if reading.out is None else removal.kept(reading.out)
        return change if kept is None else change[torch.from_numpy(kept)]

    def _still_there(self, name: str, dims: Mapping[int, list[int]], removal: Removal) -> bool:
        """True if slots that the reference sets to zero stay, as those of carriers do."""
        vectors = {(a.parameter, a.dim): a.vector for a in self.findings.axes}
        for dim, slots in dims.items():
            kept = removal.kept(vectors[name, dim]) if (name, dim) in vectors else None
            if (name, dim) in vectors and (kept is None or kept[slots].any()):
                return True
        return False


def _size(planes: torch.Tensor) -> Any:
    return planes.abs().amax(1).cpu().numpy()


def _ratios(planes: torch.Tensor, carrier: int, others: Ints) -> tuple[torch.Tensor, Bools]:
    """The other planes as multiples of the carrier's, and for each whether it is a multiple at all positions."""
    base = planes[carrier]
    rows = planes[torch.from_numpy(others)]
    at = int(base.abs().argmax())
    ratios = rows[:, at] / base[at]
    apart = (rows - ratios[:, None] * base).abs().amax(1)
    return ratios, (apart <= ROUNDING * rows.abs().amax(1)).cpu().numpy()


def _as_weight(change: torch.Tensor, shape: torch.Size, reading: Reading) -> torch.Tensor:
    """[out, slots of all blocks, taps] in the shape of the weight: a block's outputs have its slots only."""
    blocks = reading.blocks
    split = change.view(blocks, change.shape[0] // blocks, blocks, -1, change.shape[2])
    every = torch.arange(blocks)
    own = split[every, :, every]  # [blocks, out of a block, slots of a block, taps]
    return (own.transpose(1, 2) if reading.dim == 0 else own).reshape(shape)
