"""Equal widths across repeated blocks: the option `uniform`.

A pattern such as "layers.*.mlp" names blocks. Groups that stand at the same place in them, such as the outputs of `up`
in each, are a set, and keep equally many channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fxprune.analysis.findings import Findings, Group
from fxprune.channels.groups import Bools, Solution
from fxprune.errors import PlanError
from fxprune.names import chain, entries_of, find, show
from fxprune.planning.fitting import Counts
from fxprune.planning.limits import rounded_up
from fxprune.planning.select import names_in

InBlock = tuple[str, str]
"""A place: the path of a layer inside its block, and the kind of the channels of its outputs."""

Flags = Callable[[Counts], tuple[Bools, tuple[str, ...]]]


@dataclass(frozen=True)
class EqualWidths:
    """Sets of groups that keep equally many channels. The first group of a set stands for all in it.

    sets: the numbers of the groups. sizes: the size of each group.
    """

    sets: tuple[tuple[int, ...], ...]
    sizes: Mapping[int, int]

    def merged(self, counts: Counts, round_to: int) -> dict[int, int]:
        """The counts with one entry for each set: they keep the mean of what the groups in it would, rounded up."""
        merged = dict(counts)
        for members in self.sets:
            if members[0] in counts:
                kept = [self.sizes[number] - merged.pop(number) for number in members]
                most = self.most(members)
                merged[members[0]] = self.sizes[members[0]] - rounded_up(
                    min(-(-sum(kept) // len(kept)), most), most, round_to
                )
        return merged

    def most(self, members: Sequence[int]) -> int:
        """The most channels that all groups of a set can keep."""
        return min(self.sizes[number] for number in members)

    def settled(self, solution: Solution, flags: Flags, fixed: Counts, counts: Counts) -> tuple[Bools, tuple[str, ...]]:
        """The removed channels and the reasons for counts, where more stay until the widths are equal.

        Args:
            flags: a function from the counts of all groups to the removed channels and the reasons; it may keep more
                than was asked.
            fixed: the counts that are given, of all groups. counts: the others, one entry for each set.
        """
        counts, reasons = self._first({**counts, **fixed}), dict[str, None]()
        while True:
            removed, found = flags(self._of_all(counts))
            reasons |= dict.fromkeys(found)
            before = dict(counts)
            for members in self.sets:
                if members[0] in counts:
                    gone = {n: int(np.count_nonzero(removed[solution.in_group(n)])) for n in members}
                    kept = max(self.sizes[number] - lost for number, lost in gone.items())
                    counts[members[0]] = self.sizes[members[0]] - min(kept, self.most(members))
            if counts == before:
                return removed, tuple(reasons)

    def _of_all(self, counts: Counts) -> dict[int, int]:
        """The counts of all groups."""
        every = dict(counts)
        for first, *others in self.sets:
            if first in counts:
                kept = self.sizes[first] - counts[first]
                every |= {number: self.sizes[number] - kept for number in others}
        return every

    def _first(self, counts: Counts) -> dict[int, int]:
        """The counts without the entries of groups that another one stands for."""
        others = {number for members in self.sets for number in members[1:]}
        return {number: count for number, count in counts.items() if number not in others}

    def with_fixed(self, fixed: Counts, groups: Sequence[Group], stay: Mapping[int, str]) -> dict[int, int]:
        """Given counts, where one that is given for a group holds for its set. Raises `PlanError` if that cannot be.

        stay: number of a group that must stay -> why.
        """
        made = dict(fixed)
        for members in self.sets:
            kept = {self.sizes[number] - fixed[number]: groups[number].key for number in members if number in fixed}
            if len(kept) > 1:
                why = ", ".join(f'{count} of "{key}"' for count, key in kept.items())
                raise PlanError("uniform asks for equal widths, and counts for several", why=why, do="give one of them")
            for count in kept:
                if count > self.most(members):
                    smallest = min(members, key=lambda number: self.sizes[number])
                    raise PlanError(
                        "uniform asks for equal widths, and a block has fewer channels",
                        at=f'group "{groups[smallest].key}"',
                        why=f"{self.sizes[smallest]} < {count}",
                    )
                for number in members:
                    if number in stay and count < self.sizes[number]:
                        raise PlanError(
                            f"uniform asks for {count} channels, as counts does for another block",
                            at=f'group "{groups[number].key}"',
                            why=f"all {self.sizes[number]} stay: {stay[number]}",
                        )
                made |= {number: self.sizes[number] - count for number in members}
        return made


def equal_widths(findings: Findings, uniform: Any) -> tuple[EqualWidths, dict[int, str]]:
    """The sets of groups that patterns make equal, and number of a group that cannot be -> why.

    uniform: a pattern or several. Raises `PlanError` for a pattern that names fewer than two blocks, or blocks without
    channels that can be removed.
    """
    sizes = {group.number: group.size for group in findings.groups}
    sets: list[set[int]] = []
    held: dict[int, str] = {}
    for pattern in entries_of(uniform):
        blocks = _blocks(findings, pattern)
        places = [_places(findings, block) for block in blocks]
        if not any(places):
            why = f"no channels of {', '.join(blocks[:3])} can be removed"
            raise PlanError(f"uniform names no group: {show(pattern)}", why=why, do="analyze(...).report() says why")
        for place in dict.fromkeys(place for found in places for place in found):
            numbers = {found[place] for found in places if place in found}
            without = [block for block, found in zip(blocks, places, strict=True) if place not in found]
            locked = [block for block in without if _has(findings, f"{block}.{place[0]}".strip("."))]
            if locked:
                why = f'uniform: "{locked[0]}.{place[0]}" has no {place[1]} that can go, so those of the others stay'
                held |= dict.fromkeys(numbers, why)
            touched = [others for others in sets if others & numbers]
            sets = [others for others in sets if not others & numbers] + [numbers.union(*touched)]
    made = tuple(tuple(sorted(numbers)) for numbers in sets)
    for members in made:
        why = next((held[number] for number in members if number in held), "")
        held |= dict.fromkeys(members, why) if why else {}
    return EqualWidths(tuple(members for members in made if len(members) > 1), sizes), held


def _blocks(findings: Findings, pattern: Any) -> list[str]:
    """The outermost modules that a pattern names, each once."""
    names = names_in(findings)
    found = find(names, pattern, what="uniform").modules
    outer = [name for name in found if not any(around in found for around in list(chain(name))[1:])]
    blocks = list({id(names.modules[name]): name for name in reversed(outer)}.values())[::-1]
    if len(blocks) < 2:
        why = f"it names {len(blocks)} module" + (f', "{blocks[0]}"' if blocks else "s")
        raise PlanError(
            f"uniform must name several blocks: {show(pattern)}", why=why, do='write for example "layers.*"'
        )
    return blocks


def _places(findings: Findings, block: str) -> dict[InBlock, int]:
    """The places in a block where the outputs of a layer can lose channels -> the number of their group."""
    names, found = names_in(findings), dict[InBlock, int]()
    for group in findings.groups:
        for member in group.members:
            if group.is_output(member) and member.tensor.ndim > 1:
                for name in names.spellings(member.parameter):
                    layer = name.rpartition(".")[0].partition(".parametrizations.")[0]
                    if layer == block or layer.startswith(f"{block}."):
                        found[layer[len(block) + 1 :], group.kind] = group.number
    return found


def _has(findings: Findings, name: str) -> bool:
    """True if the model has a module of this name."""
    return any(path == name for path, _ in findings.model.named_modules(remove_duplicate=False))
