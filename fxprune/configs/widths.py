"""The groups that have to lose the same share so that a config can say it, and the config for a removal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from torch import nn

from fxprune.analysis.after_removal import shapes_after
from fxprune.analysis.findings import Findings, Group
from fxprune.channels.groups import Removal
from fxprune.configs.builder import Builder, Built, NotBuiltError, difference
from fxprune.configs.fields import Data, FieldPath, name_of, read, written
from fxprune.configs.layers import LayersStayError, builder_of
from fxprune.configs.moves import Move, Moves, other_buffer, total_of
from fxprune.configs.per_layer import tidied
from fxprune.configs.probes import Probes, scaled


class BeyondConfigError(Exception):
    """A removal that no config says. vectors: the dimensions that it is about, as far as they are known.

    scope: the path of the module that has them.
    """

    def __init__(self, why: str, scope: str = "", vectors: tuple[object, ...] = ()) -> None:
        self.scope, self.vectors = scope, vectors
        super().__init__(why)


@dataclass(frozen=True)
class SameShare:
    """Groups that lose the same share. groups: their numbers. moves: the positions of the moves that shrink them.

    steps: the share that stays is a number of these parts.
    """

    groups: tuple[int, ...]
    moves: frozenset[int]
    steps: int


@dataclass(frozen=True)
class ConfigWidths:
    """The widths of one analysis that a config can say.

    moves: those that are used. shares: the groups that lose the same share. held: number of another group -> why.
    totals: number of a group -> the channels of its width, those among them that cannot go.
    """

    moves: tuple[Move, ...]
    shares: tuple[SameShare, ...]
    held: Mapping[int, str] = field(default_factory=dict)
    totals: Mapping[int, int] = field(default_factory=dict)


class Config:
    """The config of a model, and what has been found out about it; the same for all analyses of the model.

    Layers that pass their input on are left out of the config.

    Raises `NotBuiltError` where the class, built from the config, is not this model, and `LayersStayError` where no
    config says which layers are gone.
    """

    def __init__(self, model: nn.Module) -> None:
        self.probes = Probes(builder_of(model))
        other = difference(model, self.probes.before)
        if other and self.probes.builder.data != Builder(model).data:
            raise LayersStayError(f"with fewer layers the class is built otherwise: {other}")
        if other:
            raise NotBuiltError(f"the model was changed after it was built: {other}")
        self._widths: dict[int, tuple[Findings, ConfigWidths]] = {}

    @property
    def name(self) -> str:
        """The name of the config's class."""
        return type(self.probes.builder.config).__name__

    def widths(self, findings: Findings) -> ConfigWidths:
        """The widths of an analysis that the config can say."""
        key = id(findings.solution)
        if key not in self._widths:
            self._widths[key] = findings, config_widths(findings, self.probes)
        return self._widths[key][1]

    def accepts(self, findings: Findings, gone: Mapping[int, int]) -> bool:
        """True if there is a config for these counts. gone: number of a group -> how many of its channels go."""
        widths = self.widths(findings)
        kept = {n: 1 - Fraction(gone.get(n, 0), total) for n, total in widths.totals.items()}
        if any(len({kept[number] for number in share.groups}) > 1 for share in widths.shares):
            return False
        try:
            values = _values(widths, {share.moves: kept[share.groups[0]] for share in widths.shares}, self.probes)
        except BeyondConfigError:
            return False
        return self.probes.builder.accepts(self._data(values))

    def after(self, findings: Findings, removal: Removal) -> Built:
        """The class, built from the config that says a removal. Raises `BeyondConfigError` if there is none."""
        widths = self.widths(findings)
        shares = {share.moves: _share_of(findings, share, widths.totals, removal) for share in widths.shares}
        values = _values(widths, shares, self.probes)
        try:
            built = self.probes.builder.build(self._data(values))
        except NotBuiltError as error:
            said = ", ".join(f"{name_of(f)}={value}" for f, value in values.items())
            raise BeyondConfigError(f"with {said} the class raises {error}") from None
        _compare(findings, removal, self.probes.before, built)
        return built

    def _data(self, values: Mapping[FieldPath, int | float]) -> Data:
        """The data of the config with other numbers."""
        return tidied(written(self.probes.base, values), self.probes.builder.data)


def config_widths(findings: Findings, probes: Probes) -> ConfigWidths:
    """The moves that go together, and the groups that they shrink.

    A move that would tie the product of two shares to a third one is left out.
    """
    search = Moves(findings, probes)
    taken: list[Move] = []
    instead: dict[int, str] = {}
    for move in search.found():
        if _is_free([*taken, move], probes):
            taken.append(move)
        else:
            other = next(found for found in taken if found.groups & move.groups)
            why = f"{move.said} counts them together with channels that go with {other.said}"
            instead |= dict.fromkeys(move.groups, why)
    rows = _rows(taken)
    totals = {number: total_of(findings, findings.groups[number]) for number in rows}
    shares = []
    for row in dict.fromkeys(rows.values()):
        groups = tuple(sorted(number for number, own in rows.items() if own == row))
        shares.append(SameShare(groups, row, _steps([totals[n] for n in groups], [taken[m] for m in row], probes)))
    others = [group for group in findings.groups if group.number not in rows]
    why_held = {group.number: instead.get(group.number) or search.told(group) for group in others}
    held = {g.number: f"{_kept(findings, g, rows, taken)}: {why_held[g.number]}" for g in others}
    return ConfigWidths(tuple(taken), tuple(shares), held, totals)


def _kept(findings: Findings, group: Group, rows: Mapping[int, frozenset[int]], moves: Sequence[Move]) -> str:
    """The sentence that a group stays, and which others of its layer and kind go: such as heads that share keys."""
    alike = [findings.groups[n] for n in rows if findings.groups[n].name == group.name]
    going = {move: moves[move].said for other in alike if other.kind == group.kind for move in rows[other.number]}
    if not going:
        return f'"{group.name}" keeps all {group.kind}'
    return (
        f'"{group.name}" keeps all {group.kind} of group "{group.key}", others go with {" and ".join(going.values())}'
    )


def _rows(moves: Sequence[Move]) -> dict[int, frozenset[int]]:
    """Number of a group -> the positions of the moves that shrink it."""
    rows: dict[int, set[int]] = {}
    for position, move in enumerate(moves):
        for number in move.groups:
            rows.setdefault(number, set()).add(position)
    return {number: frozenset(row) for number, row in rows.items()}


def _is_free(moves: Sequence[Move], probes: Probes) -> bool:
    """True if the shares of all groups can be chosen, but for those that are in the same moves.

    Where the last move shrinks a group that another one shrinks too, its numbers have to be factors.
    """
    *before, last = moves
    rows = set(_rows(moves).values())
    if len(rows) != len(moves) or last.groups in [move.groups for move in before]:
        return False
    overlap = any(last.groups & move.groups for move in before)
    return not overlap or all(isinstance(probes.numbers[field], float) for field in last.fields)


def _steps(sizes: Sequence[int], moves: Sequence[Move], probes: Probes) -> int:
    numbers = [probes.numbers[field] for move in moves for field in move.fields]
    return math.gcd(*sizes, *(number for number in numbers if isinstance(number, int)))


def _values(
    widths: ConfigWidths, kept: Mapping[frozenset[int], Fraction], probes: Probes
) -> dict[FieldPath, int | float]:
    """The new numbers of the config. Raises `BeyondConfigError` where there are none.

    kept: the moves of the groups that lose the same share -> the share of their channels that stays.
    """
    left = dict(kept)
    known: dict[int, Fraction] = {}
    while len(known) < len(widths.moves):
        row = next((r for r in left if len(r - known.keys()) == 1), None)
        if row is None:
            raise BeyondConfigError("the shares of its moves do not follow from those of the groups")
        (position,) = row - known.keys()
        known[position] = left.pop(row) / math.prod((known[m] for m in row - {position}), start=Fraction(1))
    shares: dict[FieldPath, Fraction] = {}
    for position, move in enumerate(widths.moves):
        for name in move.fields:
            shares[name] = shares.get(name, Fraction(1)) * known[position]
    return {f: scaled(read(probes.base, f), share) for f, share in shares.items() if share != 1}


def _share_of(findings: Findings, share: SameShare, totals: Mapping[int, int], removal: Removal) -> Fraction:
    """The share of their channels that groups keep. Raises `BeyondConfigError` if they keep different shares."""
    found: dict[Fraction, str] = {}
    for number in share.groups:
        group, total = findings.groups[number], totals[number]
        kept = total - int(removal.removed[group.channels].sum())
        found.setdefault(Fraction(kept, total), f'{kept} of {total} {group.kind} of "{group.name}"')
    if len(found) > 1:
        raise BeyondConfigError(f"it is one number of the config, and there would be {' and '.join(found.values())}")
    return next(iter(found))


def _compare(findings: Findings, removal: Removal, before: Built, built: Built) -> None:
    """Raises `BeyondConfigError` if a built model is not what a removal leaves."""
    for name, shape in shapes_after(findings, removal).items():
        if name in built.shapes and built.shapes[name] != shape:
            axes = [axis for axis in findings.axes if axis.parameter == name]
            other = [axis for axis in axes if built.shapes[name][axis.dim : axis.dim + 1] != (shape[axis.dim],)]
            vectors = tuple(axis.vector for axis in other)
            why = f'"{name}" would have shape {shape}, the class gives it {built.shapes[name]}'
            raise BeyondConfigError(why, name.rpartition(".")[0], vectors)
    name = other_buffer(findings, removal, before, built)
    if name:
        first = name.split('"')[1]
        vectors = tuple(axis.vector for axis in findings.axes if axis.parameter == findings.first_name(first))
        raise BeyondConfigError(name, first.rpartition(".")[0], vectors)
