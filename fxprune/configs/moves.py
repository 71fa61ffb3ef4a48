"""Moves: groups that all lose the same share of their channels, when some numbers of a config lose this share.

For example, `intermediate_size` alone goes with the hidden channels of every MLP, and `num_attention_heads` together
with `num_key_value_heads` with the heads of every attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import torch

from fxprune.analysis.after_removal import kept_slots, shapes_after
from fxprune.analysis.findings import Findings, Group
from fxprune.analysis.setting_values import is_touched, solve_part
from fxprune.analysis.settings import name_of
from fxprune.analysis.uses import SizeComparison
from fxprune.channels.groups import Bools, Removal
from fxprune.configs.builder import Built
from fxprune.configs.fields import FieldPath
from fxprune.configs.fields import name_of as field_name
from fxprune.configs.probes import Probe, Probes, setting_in

MOST_CLASSES = 6
"""The most kinds of groups whose combinations are tried for one probe."""

MOST_TOGETHER = 300
"""The most configs that are built with several numbers changed at once."""


@dataclass(frozen=True)
class Move:
    """Groups and numbers of a config that lose the same share.

    groups: the numbers of the groups. fields: the numbers of the config. exact: True if the class computes no other
    scales from the smaller numbers.
    """

    groups: frozenset[int]
    fields: tuple[FieldPath, ...]
    exact: bool = True

    @property
    def said(self) -> str:
        """The numbers of the config, for a reader."""
        return " and ".join(map(field_name, self.fields))


class Moves:
    """The search for the moves of a model."""

    def __init__(self, findings: Findings, probes: Probes) -> None:
        self.findings, self.probes = findings, probes
        self.used = sorted({s for use in findings.uses.all for s in use.expression.settings}, key=str)
        self.why: dict[FieldPath, str] = {}

    def found(self) -> list[Move]:
        """The moves, those of integers first, then those that change no scale, then those of the fewest numbers."""
        self.probes.pin_empty(self.sizes, self.used)
        single: list[Move] = []
        partners, reacting = list[FieldPath](), list[FieldPath]()
        for field in self.probes.numbers:
            move = self.of((field,))
            if move is not None:
                single.append(move)
                reacting.append(field)
            elif self._may_need_partners(field):
                partners.append(field)
        together = list(self._together(partners, reacting, single))
        found = [part for move in (*single, *together) for part in self._by_layer(move)]
        return sorted(found, key=lambda move: (self._has_factor(move), not move.exact, len(move.fields)))

    def _has_factor(self, move: Move) -> bool:
        """True if one of the numbers is a factor, such as `mlp_ratio`."""
        return any(isinstance(self.probes.numbers[field], float) for field in move.fields)

    def _by_layer(self, move: Move) -> list[Move]:
        """The moves of single layers that a move consists of, where the class reads a number of each layer; or itself.

        Then every layer may keep a share of its own.
        """
        whole, base = [move], self.probes.base
        if len(move.groups) < 2 or self._has_factor(move):
            return whole
        parts = [self.of(fields) for fields in self.probes.pin_layers(move.fields, self.used)]
        made = [part for part in parts if part is not None]
        if made and sorted(number for part in made for number in part.groups) == sorted(move.groups):
            return made
        self.probes.unpin(base)
        return whole

    def _together(
        self, partners: Sequence[FieldPath], reacting: Sequence[FieldPath], single: Sequence[Move]
    ) -> Iterator[Move]:
        """The moves of two numbers, of which one makes none alone, and of three that make none by twos."""
        start, known = self.probes.builder.count, list(single)
        for size in (2, 3):
            for fields in combinations([*partners, *reacting], size):
                if self.probes.builder.count - start > MOST_TOGETHER:
                    return
                pairs = (move for move in known if len(move.fields) == 2)
                needed = sum(field in partners for field in fields) >= size - 1
                if needed and not any({*move.fields} <= {*fields} for move in pairs):
                    move = self.of(fields)
                    if move is not None and not any(
                        {*other.fields} <= {*fields} and other.groups == move.groups for other in known
                    ):
                        known.append(move)
                        yield move

    @cached_property
    def sizes(self) -> list[int]:
        """The sizes that dimensions with channels have, and the numbers of channels."""
        axes = self.findings.axes
        return sorted({axis.vector.size for axis in axes} | {group.size for group in self.findings.groups})

    def _may_need_partners(self, field: FieldPath) -> bool:
        """True if a number of the config is about dimensions with channels, or about a number that forward uses."""
        for probe in self.probes.of((field,)):
            if probe.built is None:
                return True
            changed = self.probes.changed_shapes(probe)
            if changed is None:
                return False
            if changed:
                return all(self._touching(name, shape) for name, shape in changed.items())
            return any(setting_in(probe.built, s) != setting_in(self.probes.before, s) for s in self.used)
        return False

    def _touching(self, name: str, shape: tuple[int, ...]) -> bool:
        """True if all dimensions of a tensor in which a shape differs have channels."""
        before = self.probes.before.shapes[name]
        if len(before) != len(shape) or name not in self._dims:
            return False
        return all(dim in self._dims[name] for dim, size in enumerate(shape) if size != before[dim])

    @cached_property
    def _dims(self) -> dict[str, set[int]]:
        """Name of a tensor -> its dimensions in which there are channels."""
        found: dict[str, set[int]] = {}
        for group in self.findings.groups:
            for member in group.members:
                for name in self.findings.names_of(member.parameter):
                    found.setdefault(name, set()).add(member.dim)
        return found

    # -- one move ---------------------------------------------------------------------------------------------

    def of(self, fields: tuple[FieldPath, ...]) -> Move | None:
        """The move of some numbers; None if their change is no removal of channels."""
        for probe in self.probes.of(fields):
            changed = self.probes.changed_shapes(probe)
            if probe.built is None:
                self._note(fields, f"the class raises {probe.error}")
            elif changed:
                for groups in self._candidates(probe, changed):
                    flags = self._flags(groups, probe)
                    why = "" if flags is None else self._mismatch(probe.built, Removal(self.findings.solution, flags))
                    if flags is not None and not why:
                        return Move(frozenset(g.number for g in groups), fields, self._is_exact(probe.built))
                    self._note(fields, why)
        return None

    def _note(self, fields: Sequence[FieldPath], why: str) -> None:
        if len(fields) == 1 and why:
            self.why.setdefault(fields[0], why)

    def _candidates(self, probe: Probe, changed: Iterable[str]) -> Iterator[list[Group]]:
        """The sets of groups that may have shrunk: those whose dimensions have all changed, kind by kind."""
        assert probe.built is not None
        shapes, before = probe.built.shapes, self.probes.before.shapes
        able = [
            group
            for group in self.findings.groups
            if all(
                m.parameter not in before or shapes[m.parameter][m.dim] != before[m.parameter][m.dim]
                for m in group.members
            )
        ]
        tried = set[tuple[int, ...]]()
        for kind in (_coarse, _fine):
            classes: dict[str, list[Group]] = {}
            for group in able:
                classes.setdefault(kind(group), []).append(group)
            if len(classes) > MOST_CLASSES:
                continue
            for size in range(1, len(classes) + 1):
                for chosen in combinations(classes.values(), size):
                    groups = [group for members in chosen for group in members]
                    numbers = tuple(sorted(group.number for group in groups))
                    if numbers not in tried:
                        tried.add(numbers)
                        yield groups

    def _flags(self, groups: Iterable[Group], probe: Probe) -> Bools | None:
        """Flags of the last channels of each group, so many that the share stays; None where that is no integer."""
        removed = self.findings.solution.no_channel()
        for group in groups:
            gone = total_of(self.findings, group) * (1 - probe.share)
            if gone.denominator != 1 or gone > group.size:
                return None
            removed[group.channels[group.size - int(gone) :]] = True
        return removed

    def _mismatch(self, built: Built, removal: Removal) -> str:
        """Why a built model is not what a removal leaves; "" if it is."""
        for name, shape in shapes_after(self.findings, removal).items():
            if name in built.shapes and built.shapes[name] != shape:
                return f'"{name}" has shape {built.shapes[name]}, not {shape}'
        return self._other_setting(built, removal) or other_buffer(self.findings, removal, self.probes.before, built)

    def _other_setting(self, built: Built, removal: Removal) -> str:
        """The first number used by forward that is another one in a built model than after a removal."""
        uses, before = self.findings.uses, self.probes.before
        other = {s for s in self.used if setting_in(built, s) != setting_in(before, s)}
        for part in uses.parts:
            if is_touched(part, removal) or other & {s for use in part for s in use.expression.settings}:
                solved = solve_part(part, uses.before, removal)
                if solved.missed:
                    turned = next((use for use, _ in solved.wrong if isinstance(use, SizeComparison)), None)
                    if turned is not None:
                        return f"{turned.place} turns out otherwise, so that forward goes another way"
                    return "numbers that forward computes do not fit"
                for setting in solved.deciding:  # the others keep their values only because nothing says otherwise
                    made, after = setting_in(built, setting), solved.values[setting]
                    if made is not None and made != after:
                        return f"{name_of(setting)} is {made}, not {after}"
        return ""

    def _is_exact(self, built: Built) -> bool:
        """True if no attribute is another number that is no integer: the class computes the same scales."""
        before = dict(self.probes.before.model.named_modules())
        for path, module in built.model.named_modules():
            for name, value in module.__dict__.items():
                if type(value) is float and before[path].__dict__.get(name) != value:
                    return False
        return True

    def told(self, group: Group) -> str:
        """Why a group that is in no move stays: of the number that changes all of it, and least beside it."""
        found: list[tuple[int, int, str]] = []
        places = {(n, m.dim) for m in group.members for n in self.findings.names_of(m.parameter)}
        for field, why in self.why.items():
            for probe in self.probes.of((field,)):
                changed = self.probes.changed_shapes(probe) or {}
                dims = {(name, dim) for name, shape in changed.items() for dim in self._other_dims(name, shape)}
                if dims & places:
                    told = f"{field_name(field)} counts them, and with another value {why}"
                    found.append((-len(dims & places), len(dims), told))
        if not found:
            return f"no number in {type(self.probes.builder.config).__name__} counts them"
        return min(found, key=lambda entry: entry[:2])[2]

    def _other_dims(self, name: str, shape: tuple[int, ...]) -> list[int]:
        """The dimensions of a tensor whose size is another one in a shape."""
        before = self.probes.before.shapes[name]
        if len(before) != len(shape):
            return list(range(len(before)))
        return [dim for dim, size in enumerate(shape) if size != before[dim]]


def total_of(findings: Findings, group: Group) -> int:
    """The number of channels that a width counts: those of its group, and those beside them that cannot go."""
    columns = findings.solution.channels_of(findings.axis_vector(group.producer.parameter, group.producer.dim))
    if len(columns) == 1:
        own, stuck = int(np.isin(columns[0], group.channels).sum()), int((columns[0] < 0).sum())
        each = own // group.size
        if own + stuck == len(columns[0]) and own == each * group.size and stuck % each == 0:
            return group.size + stuck // each
    return group.size


def other_buffer(findings: Findings, removal: Removal, before: Built, built: Built) -> str:
    """The first tensor that loading leaves as it is built, and that is not what a removal leaves; "" if none is."""
    kept = kept_slots(findings, removal)
    for name, values in before.computed.items():
        made = built.computed.get(name)
        if made is None or findings.first_name(name) not in findings.tensors:
            continue
        expected = cut(values, kept.get(findings.first_name(name), {}))
        if "meta" in (made.device.type, expected.device.type):  # no numbers are known, they may depend on the width
            if values.shape != expected.shape:
                return f'"{name}" is computed again'
            continue
        if expected.shape != made.shape or not torch.equal(expected, made):
            return f'"{name}" has other numbers'
    return ""


def cut(values: torch.Tensor, kept: dict[int, Bools]) -> torch.Tensor:
    """The kept slots of a tensor. kept: dimension -> flags of its slots, for those that lose some."""
    for dim, flags in kept.items():
        values = values.index_select(dim, torch.from_numpy(np.flatnonzero(flags)))
    return values


def _coarse(group: Group) -> str:
    return group.kind


def _fine(group: Group) -> str:
    places = sorted(
        {f"{re.sub(r'[0-9]+', '*', m.parameter)}[{m.dim}]: {len(m.slots) // group.size}" for m in group.members}
    )
    return " ".join((group.kind, str(group.size), *places))
