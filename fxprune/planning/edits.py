"""Plans edited by hand: channels that come back, and further ones that go. What does not fit together is refused."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Bools, Ints
from fxprune.errors import PlanError, counted
from fxprune.names import Level, find, show
from fxprune.planning.channels import removal_of, slots_of
from fxprune.planning.enough import keep_enough
from fxprune.planning.fields import PlanT
from fxprune.planning.masks import layers_named, why_stay
from fxprune.planning.select import names_in
from fxprune.planning.shared_settings import keep_equal_widths
from fxprune.planning.structure import structure_of

GO, STAY = "remove", "restore"
"""The two edits, by the names of their methods."""


def edited(
    plan: PlanT, edit: str, layer: Any, indices: Any, findings: Findings | None, *, exact: bool = False
) -> PlanT:
    """The plan with one edit, checked like any other plan.

    Args:
        edit: `GO` or `STAY`.
        layer: a pattern that names one layer or one group; or a dict from such patterns to indices.
        indices: an index, or several: output channels of a layer, positions in a group; None for a dict.
        findings: the analysis of the model; None for the one that the plan was made from.
        exact: True to refuse channels whose removal changes a statistic.
    """
    known = findings or plan.findings
    if known is None:
        raise PlanError(
            "the plan knows no analysis to check an edit with",
            why="it is from a file, a record or a copy, which hold none",
            do=f"pass one: plan.{edit}(layer, indices, analysis=fxprune.analyze(model, inputs))",
        )
    if plan.zeroed is not None:
        raise PlanError(
            "a plan with folded constants cannot be edited",
            why="what its removed channels add is in the biases of other layers",
            do="make another plan with masks= or ratio=",
        )
    before = removal_of(known, plan).removed
    after = before.copy()
    for named, chosen in _edits(edit, layer, indices).items():
        _apply(known, _Edit(edit, named, _target(known, named), chosen), after)
    _check(known, edit, before, after, exact=exact)
    removed = slots_of(known, after)
    count = int(np.count_nonzero(before != after))
    by_hand = f"by hand: plan.{edit} of {counted(count, 'channel')} in " + ", ".join(_keys(known, before != after))
    made = replace(
        plan,
        removed=removed,
        structure=structure_of(known, after, removed),
        reasons=(*plan.reasons, by_hand),
        sizes=(),
        factors=(),
        versions={},
    )
    return made.made_from(known)


# -- what is edited ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Target:
    """A layer or a group.

    label: its name. columns: the channels of its slots, as in `Solution.channels_of`. outputs: the parameter and the
    dimension of a layer; None for a group.
    """

    label: str
    columns: list[Ints]
    outputs: tuple[str, int] | None = None

    @property
    def size(self) -> int:
        """The number of slots."""
        return len(self.columns[0]) if self.columns else 0


@dataclass(frozen=True, eq=False)
class _Edit:
    """One edit of one layer or group. named: what the user calls it."""

    edit: str
    named: Any
    target: _Target
    indices: Any

    def refused(self, what: str, why: str, do: str) -> PlanError:
        """The error for this edit."""
        at = f"plan.{self.edit}({show(self.named)}, {self.indices!r})"
        return PlanError(f"{self.target.label}: {what}", at=at, why=why, do=do)

    def slots(self) -> Ints:
        """The indices as sorted numbers. Raises `PlanError` for those that are none, or that the target lacks."""
        given = [self.indices] if isinstance(self.indices, numbers.Integral) else self.indices
        if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
            raise self.refused("the indices are no numbers", f"they are a {type(given).__name__}", "pass [3, 5]")
        found = set()
        for index in given:
            number = index.item() if hasattr(index, "item") else index
            if isinstance(number, bool) or not isinstance(number, numbers.Integral):
                kind = "flags, not numbers" if isinstance(number, bool) else f"{type(number).__name__}, not int"
                raise self.refused("the indices are no numbers", f"{number!r} is of kind {kind}", "pass [3, 5]")
            if not 0 <= int(number) < self.target.size:
                raise self.refused(
                    f"there is no index {number}",
                    f"it has {self.target.size}, counted from 0",
                    f"pass 0 to {self.target.size - 1}",
                )
            found.add(int(number))
        if not found:
            raise self.refused("no index is given", "the list is empty", "pass [3, 5]")
        return np.array(sorted(found), dtype=np.int64)


def _edits(edit: str, layer: Any, indices: Any) -> dict[Any, Any]:
    """Layer -> indices, of one edit or several that are made together."""
    if isinstance(layer, Mapping):
        if indices is not None or not layer:
            why = "a dict has the indices of each layer" if layer else "the dict is empty"
            raise PlanError(
                f"plan.{edit} takes a layer and indices, or a dict",
                why=why,
                do=f'pass plan.{edit}("layer", [3, 5]) or plan.{edit}({{"layer": [3, 5]}})',
            )
        return dict(layer)
    if indices is None:
        raise PlanError("no index is given", at=f"plan.{edit}({show(layer)})", do="pass [3, 5]")
    return {layer: indices}


def _target(findings: Findings, named: Any) -> _Target:
    """The layer or the group that a pattern names. Raises `PlanError` unless it is one."""
    what = "the edit"
    match = find(names_in(findings), named, what=what)
    if match.level in (Level.GROUP, Level.KIND):
        groups = [findings.groups[number] for number in sorted(match.groups)]
        _refuse_several(named, [group.key for group in groups])
        return _Target(f'group "{groups[0].key}"', [groups[0].channels])
    layers = layers_named(findings, [named], what=what)
    _refuse_several(named, [layer for layer, _, _ in layers])
    [(layer, parameter, _)] = layers
    dim = findings.dim_of_outputs(parameter)
    vectors = [findings.axis_vector(parameter, dim)] if findings.has_axis(parameter, dim) else []
    columns = [column for vector in vectors for column in findings.solution.channels_of(vector)]
    none = np.full(findings.tensors[parameter].shape[dim], -1, dtype=np.int64)
    return _Target(f'layer "{layer}"', columns or [none], (parameter, dim))


def _refuse_several(named: Any, found: list[str]) -> None:
    if len(found) > 1:
        listed = ", ".join(f'"{name}"' for name in found[:4]) + (", ..." if len(found) > 4 else "")
        raise PlanError(
            f"an edit is about one layer or group: {show(named)}",
            why=f"that names {len(found)}: {listed}",
            do="name one of them; a dict edits several together",
        )


# -- the edit ---------------------------------------------------------------------------------------------


def _apply(findings: Findings, edit: _Edit, removed: Bools) -> None:
    """Carry out one edit. removed: flags of channels, changed in place."""
    slots, columns = edit.slots(), edit.target.columns
    gone = _gone(columns, removed)
    idle = slots[gone[slots] == (edit.edit == GO)]
    if len(idle):
        state = "goes already" if edit.edit == GO else "stays already"
        raise edit.refused(f"index {idle[0]} {state}", "the plan says so", "leave it out")
    asked = gone.copy()
    asked[slots] = edit.edit == GO
    if edit.edit == GO:
        for column in columns:
            inside = np.unique(column[asked & (column >= 0)])
            removed[inside[~np.isin(inside, column[~asked])] if len(columns) > 1 else inside] = True
    else:
        for column in columns:
            removed[column[slots][column[slots] >= 0]] = False
    made = _gone(columns, removed)
    if (made != asked).any():
        raise _not_alone(findings, edit, slots, asked, made)


def _not_alone(findings: Findings, edit: _Edit, slots: Ints, asked: Bools, made: Bools) -> PlanError:
    """The error for indices that cannot go or come back without others. made: what would be gone."""
    stuck = slots[made[slots] != asked[slots]]
    if edit.edit == GO and len(stuck):
        outputs = edit.target.outputs
        assert outputs is not None, "a channel of a group can go"
        why = why_stay(findings, outputs, edit.target.columns, stuck, findings.solution.no_channel())
        kinds = [findings.groups[n].key for n in findings.solution.groups_with(_members(findings, edit, stuck))]
        do = f"name one of its groups: {', '.join(kinds)}" if kinds else "leave it out"
        return edit.refused(f"index {stuck[0]} cannot go", why, do)
    others = np.flatnonzero(made != asked)
    listed = ", ".join(map(str, others[:6])) + (", ..." if len(others) > 6 else "")
    verb = "go" if edit.edit == GO else "come back"
    keys = ", ".join(_keys(findings, _members(findings, edit, slots)))
    why = f"index {listed} would {verb} too: they belong to the same channels, of {keys}"
    return edit.refused(f"index {slots[0]} cannot {verb} alone", why, "name all of them")


def _members(findings: Findings, edit: _Edit, slots: Ints) -> Bools:
    """Flags of the channels at some slots."""
    flags = findings.solution.no_channel()
    for column in edit.target.columns:
        flags[column[slots][column[slots] >= 0]] = True
    return flags


def _gone(columns: list[Ints], removed: Bools) -> Bools:
    """Flags of the slots that go."""
    return np.asarray(np.any([(column >= 0) & removed[column] for column in columns], axis=0))


def _check(findings: Findings, edit: str, before: Bools, after: Bools, *, exact: bool) -> None:
    """Raise `PlanError` where channels that were chosen leave a model that cannot run, or that is not exact."""
    needed = after.copy()
    scores = np.zeros(len(after))
    few = keep_enough(findings, needed, scores)
    uneven = keep_equal_widths(findings, needed, scores)
    at = "; ".join(_keys(findings, before != after))
    if (needed != after).any():
        together = f"edit the widths that must fit in one call: plan.{edit}({{layer: indices, ...}})"
        raise PlanError(
            "the edit leaves a model that cannot run",
            at=at,
            why="; ".join((*few, *uneven)),
            do=together if uneven else "remove fewer of them",
        )
    inexact = np.flatnonzero(after & ~before & findings.inexact)
    if exact and len(inexact):
        why = "; ".join(dict.fromkeys(str(event) for event in findings.marked_by(inexact)))
        raise PlanError(
            "the edit is not exact", at=at, why=f"a statistic changes: {why}", do="leave exact out, or edit others"
        )


def _keys(findings: Findings, flags: Bools) -> list[str]:
    """The groups of some channels, for a message."""
    return [f'group "{findings.groups[number].key}"' for number in findings.solution.groups_with(flags)]
