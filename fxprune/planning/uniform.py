"""Equal widths across repeated blocks: the option `uniform`.

A pattern such as "layers.*.mlp" names blocks. Groups that stand at the same place in them, such as the outputs of `up`
in each, are a set, and keep equally many channels. With "config", a set is what one number of the model's config
counts; its groups keep the same share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np

from fxprune.analysis.findings import Findings, Group
from fxprune.capture.captured import FrontEnd
from fxprune.channels.groups import Bools, Solution
from fxprune.configs import Config, LayersStayError, NotBuiltError, has_config
from fxprune.errors import PlanError, counted, nearest
from fxprune.names import chain, entries_of, find, show
from fxprune.planning.fitting import Counts
from fxprune.planning.limits import rounded_up
from fxprune.planning.sayable import nearest_accepted
from fxprune.planning.select import names_in

InBlock = tuple[str, str]
"""A place: the path of a layer inside its block, and the kind of the channels of its outputs."""

Flags = Callable[[Counts], tuple[Bools, tuple[str, ...]]]


CONFIG = "config"
"""The value of `uniform` for which the model's config says which groups are a set."""


@dataclass(frozen=True)
class EqualWidths:
    """Sets of groups that keep equally many channels. The first group of a set stands for all in it.

    sets: the numbers of the groups. sizes: the size of each group, or of its width where some channels cannot go.
    steps: number of a group -> how many of its channels are one step; 1 if it is not listed. The groups of a set keep
        equally many steps.
    accepts: a function from the counts of all groups to whether they are possible together; None if all are.
    """

    sets: tuple[tuple[int, ...], ...]
    sizes: Mapping[int, int]
    steps: Mapping[int, int] = field(default_factory=dict)
    accepts: Callable[[Counts], bool] | None = None

    def merged(self, counts: Counts, round_to: int) -> dict[int, int]:
        """The counts with one entry for each set: they keep the mean of what the groups in it would, rounded up."""
        merged = dict(counts)
        for members in self.sets:
            if members[0] in counts:
                kept = [Fraction(self.sizes[n] - merged.pop(n), self._step(n)) for n in members if n in merged]
                most, largest = self.most(members), max(map(self._step, members))
                multiple = round_to // math.gcd(round_to, largest)
                mean = sum(kept, Fraction(0)) / len(kept)
                if largest > 1:
                    mean = max(mean - Fraction(1, largest), Fraction(1))  # no whole step for a part of a channel
                merged[members[0]] = self._gone(members[0], rounded_up(min(math.ceil(mean), most), most, multiple))
        return merged

    def most(self, members: Sequence[int]) -> int:
        """The most steps that all groups of a set can keep."""
        return min(self.sizes[number] // self._step(number) for number in members)

    def _step(self, number: int) -> int:
        return self.steps.get(number, 1)

    def _gone(self, number: int, steps: int) -> int:
        """The channels that a group loses if it keeps some steps."""
        return self.sizes[number] - steps * self._step(number)

    def _kept(self, number: int, gone: int) -> int:
        """The steps that a group keeps at least if it loses so many channels."""
        return -(-(self.sizes[number] - gone) // self._step(number))

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
                    kept = max(self._kept(number, lost) for number, lost in gone.items())
                    counts[members[0]] = self._gone(members[0], min(kept, self.most(members)))
            if counts == before:
                counts = self._accepted(counts, fixed)
            if counts == before:
                return removed, tuple(reasons)

    def _accepted(self, counts: dict[int, int], fixed: Counts) -> dict[int, int]:
        """The counts, where more stay until they are possible together; those that are given stay as they are."""
        accepts = self.accepts
        if accepts is None:
            return counts
        members = {m[0]: m for m in self.sets if m[0] in counts}
        most = {n: self._kept(n, counts[n]) if n in fixed else self.most(m) for n, m in members.items()}
        kept = {number: self._kept(number, counts[number]) for number in members}

        def gone(steps: Counts) -> dict[int, int]:
            return {**counts, **{number: self._gone(number, step) for number, step in steps.items()}}

        found = nearest_accepted(kept, most, lambda steps: accepts(self._of_all(gone(steps))))
        return counts if found is None else gone(found)

    def _of_all(self, counts: Counts) -> dict[int, int]:
        """The counts of all groups."""
        every = dict(counts)
        for members in self.sets:
            if members[0] in counts:
                kept = self._kept(members[0], counts[members[0]])
                every |= {number: self._gone(number, kept) for number in members}
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
            given = {number: self.sizes[number] - fixed[number] for number in members if number in fixed}
            kept = {Fraction(count, self._step(number)): number for number, count in given.items()}
            if len(kept) > 1:
                why = ", ".join(f'{given[number]} of "{groups[number].key}"' for number in kept.values())
                raise PlanError("uniform asks for equal widths, and counts for several", why=why, do="give one of them")
            for count, first in kept.items():
                self._refuse_between(count, groups[first], given[first])
                self._refuse_more(int(count), members, groups)
                self._refuse_held(int(count), members, groups, stay)
                made |= {number: self._gone(number, int(count)) for number in members}
        return made

    def _refuse_between(self, steps: Fraction, group: Group, kept: int) -> None:
        if steps.denominator != 1:
            raise PlanError(
                f"no config says that {counted(kept, 'channel', 'stay')}",
                at=f'group "{group.key}"',
                why=f"one number counts them and other widths, which fit for multiples of {self._step(group.number)}",
                do=f"keep a multiple of {self._step(group.number)}",
            )

    def _refuse_more(self, steps: int, members: Sequence[int], groups: Sequence[Group]) -> None:
        if steps > self.most(members):
            smallest = min(members, key=lambda number: self.sizes[number])
            raise PlanError(
                "uniform asks for equal widths, and a block has fewer channels",
                at=f'group "{groups[smallest].key}"',
                why=f"{self.sizes[smallest]} < {steps}",
                do="ask for fewer channels, or leave the block out with ignore",
            )

    def _refuse_held(
        self, steps: int, members: Sequence[int], groups: Sequence[Group], stay: Mapping[int, str]
    ) -> None:
        for number in members:
            if number in stay and self._gone(number, steps):
                asked = counted(steps * self._step(number), "channel")
                raise PlanError(
                    f"uniform asks for {asked}, as counts does for another block",
                    at=f'group "{groups[number].key}"',
                    why=f"all {self.sizes[number]} stay: {stay[number]}",
                    do="give this group the same count, or leave both at their width",
                )


def equal_widths(findings: Findings, uniform: Any) -> tuple[EqualWidths, dict[int, str]]:
    """The sets of groups that patterns make equal, and number of a group that cannot be -> why.

    uniform: a pattern or several, or "config". Raises `PlanError` for a pattern that names fewer than two blocks, or
    blocks without channels that can be removed.
    """
    sizes = {group.number: group.size for group in findings.groups}
    if by_config(uniform):
        return _by_config(findings, sizes)
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


def by_config(uniform: Any) -> bool:
    """True if the model's config has to say what is removed."""
    return isinstance(uniform, str) and uniform == CONFIG


def class_paths(paths: Sequence[FrontEnd]) -> tuple[FrontEnd, ...]:
    """The paths whose results a config can make: those that keep the class, without hooks.

    Raises `PlanError` if there is none.
    """
    found = tuple(path for path in paths if path.keeps_class and not path.needs_hooks)
    if not found:
        why = "a config makes an object of the model's class"
        raise PlanError('uniform="config" needs a result of the model\'s class', why=why, do="leave `path` out")
    return found


def with_config(findings: Findings) -> Findings:
    """The findings with the config that has to say what is removed.

    Raises `PlanError` for a model without one, or one that its class cannot be built from.
    """
    if findings.config is not None:
        return findings
    if not has_config(findings.model):
        raise PlanError(
            f"{type(findings.model).__name__} has no config that could say its widths",
            at='uniform="config"',
            why="it needs `config` with `to_dict` and `from_dict`, and `save_pretrained`",
            do='leave uniform out, or name repeated blocks, such as "layers.*"',
        )
    if findings.preserved is not None:
        why = "the layers that preserve statistics are no part of a config"
        raise PlanError('uniform="config" and norms="preserve" do not go together', why=why, do="leave out one of them")
    try:
        return replace(findings, config=Config(findings.model))
    except LayersStayError as error:
        name = type(findings.model.config).__name__
        do = 'leave out uniform="config", or drop whole layers that are alike'
        raise PlanError(f"no {name} says the model without these branches", why=str(error), do=do) from None
    except NotBuiltError as error:
        kind = type(findings.model).__name__
        do = "check that the class can be made from the config alone"
        raise PlanError(f"{kind} cannot be built from its config", why=str(error), do=do) from None


def _by_config(findings: Findings, sizes: Mapping[int, int]) -> tuple[EqualWidths, dict[int, str]]:
    """The sets of groups that one number of the config counts, and number of a group that none counts -> why."""
    config = with_config(findings).config
    widths = config.widths(findings)
    sets = tuple(share.groups for share in widths.shares)
    totals = {**sizes, **widths.totals}
    steps = {number: totals[number] // share.steps for share in widths.shares for number in share.groups}
    return EqualWidths(sets, totals, steps, partial(config.accepts, findings)), dict(widths.held)


def _blocks(findings: Findings, pattern: Any) -> list[str]:
    """The outermost modules that a pattern names, each once."""
    names = names_in(findings)
    hint = nearest(pattern, [CONFIG]) if isinstance(pattern, str) and pattern not in names.modules else ""
    if hint.startswith("did you mean"):
        do = f'pass uniform={CONFIG!r}, or a pattern of repeated blocks, such as "layers.*"'
        raise PlanError(f"uniform names no block: {show(pattern)}", why=hint, do=do)
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
