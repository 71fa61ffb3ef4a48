"""Plans: what goes, as indices per parameter and dimension, in the numbering of the model they were made for."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fxprune.analysis.findings import Findings, Group
from fxprune.channels.groups import Axis, Bools, Removal
from fxprune.criteria import Importance, scores_of
from fxprune.errors import PlanError, nearest
from fxprune.files import PathLike
from fxprune.planning.masks import every_channel, removed_by_masks
from fxprune.planning.select import by_group, ignored_groups
from fxprune.planning.shared_settings import level
from fxprune.planning.sizes import Size
from fxprune.planning.structure import Structure, structure_of

if TYPE_CHECKING:
    from fxprune.planning.algebra import PlanDiff

Removed = dict[str, dict[int, list[int]]]


@dataclass(frozen=True)
class Plan:
    """What goes.

    removed: parameter or buffer -> {dimension: sorted indices that go}. Names of tied parameters all appear.
    reasons: what was asked for and stays, with the reason.
    zeroed: with folded constants, what the reference sets to zero; None where that is what goes.
    biases: the layers, and "%node"s of functions, that get a bias, to take constants up.
    maps: the nodes to whose results a map of constants is added.
    sizes: what was counted anew, and where it stands; known after a rewrite, so in `record(small).plan`.
    structure: what it was made for; None where a plan was written by hand.
    path: the rung of the ladder that it was made on, "" where that is not known.
    versions: of what wrote the file that it was read from.
    """

    removed: Removed
    reasons: tuple[str, ...] = field(default=())
    zeroed: Removed | None = None
    biases: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = field(default=(), repr=False)
    structure: Structure | None = field(default=None, repr=False)
    path: str = ""
    versions: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.removed)

    @property
    def kept(self) -> Removed:
        """What stays, in the same form as `removed`. Raises `PlanError` where the plan knows no shapes."""
        from fxprune.planning.algebra import kept

        return kept(self)

    def save(self, path: PathLike) -> None:
        """Write the plan as JSON (`docs/files.md`), whole or not at all.

        The same plan always gives the same bytes, also after it was loaded. Raises `PlanError` for a plan that does not
        know what it was made for, one that was written by hand.
        """
        from fxprune.planning.plan_file import save

        save(self, path)

    @classmethod
    def load(cls, path: PathLike) -> Plan:
        """The plan in a file. Raises `PlanError` that names the key, the value and the rule it breaks.

        >>> import os, tempfile, torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> plan = fxprune.analyze(net, torch.randn(1, 4)).plan(ratio=0.5)
        >>> path = os.path.join(tempfile.mkdtemp(), "plan.json")
        >>> plan.save(path)
        >>> fxprune.Plan.load(path) == plan
        True
        """
        from fxprune.planning.plan_file import load

        return load(path)

    def then(self, second: Plan) -> Plan:
        """Both in one, in the numbering of this plan's model; `second` was made for the small one.

        Raises `PlanError` where `second` is for another model than the one that this plan leaves.
        """
        from fxprune.planning.algebra import then

        return then(self, second)

    def diff(self, second: Plan) -> PlanDiff:
        """What one removes and the other does not. Raises `PlanError` where they are for different models."""
        from fxprune.planning.algebra import diff

        return diff(self, second)


def choose(
    findings: Findings,
    *,
    ratio: float | Mapping[str, float] | None = None,
    masks: Mapping[str, Any] | str | None = None,
    importance: Importance = "l2",
    ignore: Any = (),
    round_to: int = 1,
    exact: bool = False,
    seed: int | None = None,
) -> tuple[Bools, tuple[str, ...]]:
    """Which channels go, and why something that was asked for stays.

    Args:
        ratio: the share of every group's channels to remove, in [0, 1), rounded down; or {glob: share} over
            group names ("layer1.0.conv2") or names with kinds ("layer1.0.conv2:block width"), where groups that no
            glob names stay. A dimension that is a grid (conv groups x their width) is
            shrunk by both of its groups.
        masks: instead of a ratio: {layer: bool tensor [out_channels], True = keep}. What is coupled to a masked
            channel goes with it; what cannot go stays, and `Plan.reasons` says why. "zeros" for every channel.
        importance: "l2", "l1" (norms of all that goes with a channel), "fpgm" (distance of the producer's filter
            from the group's others, see `fxprune.criteria`), "random", or a callable that takes a `Group`
            and returns one score per channel; the lowest go.
        ignore: names, globs, modules or types whose output channels stay.
        round_to: the number of channels kept in a group is a multiple of this where the group is large enough.
        exact: only groups whose removal equals setting their slots to zero.
        seed: of importance "random".

    Raises `PlanError` for requests that cannot be meant.
    """
    if (ratio is None) == (masks is None):
        raise PlanError(
            "say what goes: exactly one of ratio and masks",
            why=f"ratio={ratio!r}, masks={'given' if masks is not None else None}",
        )
    _check_round_to(round_to)
    stay = ignored_groups(findings, ignore)
    if exact:
        stay |= set(findings.solution.groups_with(findings.inexact))
    if isinstance(masks, str):
        return every_channel(findings, masks, stay), ()
    if masks is not None:
        return removed_by_masks(findings, masks, stay)
    ratios = _ratios(findings, ratio)
    groups = [g for g in findings.groups if g.number not in stay and ratios[g.number] > 0]
    removed = findings.solution.no_channel()
    levelled: tuple[str, ...] = ()
    if groups:
        scores = scores_of(findings, importance, groups, seed)
        for group in groups:
            drop = group.size - kept_count(group.size, ratios[group.number], round_to)
            removed[group.channels[np.argsort(scores[group.channels], kind="stable")[:drop]]] = True
        keep_one_each(findings, removed, scores)
        levelled = level(findings, removed, scores)
    return removed, levelled if removed.any() else _why_nothing(findings, ratios, stay, exact, round_to)


def kept_count(size: int, ratio: float, round_to: int) -> int:
    """How many of `size` channels stay: at least one, a multiple of `round_to` where the group allows it.

    >>> kept_count(64, 0.3, 1), kept_count(64, 0.3, 8), kept_count(58, 0.5, 8), kept_count(4, 0.5, 8)
    (45, 48, 32, 4)
    """
    keep = max(1, size - int(ratio * size + 1e-9))
    if round_to == 1:
        return keep
    if size < round_to:
        return size
    rounded = -(-keep // round_to) * round_to
    return rounded if rounded <= size else size // round_to * round_to


def keep_one_each(findings: Findings, removed: Bools, scores: npt.NDArray[np.float64]) -> None:
    """No dimension may become empty, or smaller than what is chosen from it: the best slots' channels stay."""
    for vector, least in findings.observed.minima:
        columns = findings.solution.channels_of(vector)
        if columns:
            table = np.stack(columns)
            gone = (removed[table] & (table >= 0)).any(0)
            worst = np.where(gone, np.where(table >= 0, scores[table], np.inf).min(0), -np.inf)
            for slot in np.argsort(-worst)[: max(0, least - int(np.count_nonzero(~gone)))]:
                removed[table[:, slot][table[:, slot] >= 0]] = False
    for vector in findings.observed.vectors:
        columns = findings.solution.channels_of(vector)
        if not columns or vector.size == 0:
            continue
        table = np.stack(columns)
        gone = (removed[table] & (table >= 0)).any(0)
        if gone.all():
            worst = np.where(table >= 0, scores[table], np.inf).min(0)
            best = table[:, int(worst.argmax())]
            removed[best[best >= 0]] = False


def finish(findings: Findings, removed: Bools, reasons: tuple[str, ...]) -> Plan:
    """Channels to indices per parameter."""
    result: Removed = {}
    for axis, slots in findings.solution.slots_of(removed):
        for name in findings.names_of(axis.parameter):
            result.setdefault(name, {})[axis.dim] = list(slots)
    structure = structure_of(findings, removed, result)
    return Plan(result, reasons, structure=structure, path=findings.captured.path)


def removal_of(findings: Findings, plan: Plan) -> Removal:
    """The channels of `findings` that a plan removes.

    Raises `PlanError` where the plan names tensors, dimensions or indices that the model lacks, or would cut a
    channel of this model in two: then it was made for another one.
    """
    if not isinstance(plan, Plan):
        raise PlanError(
            f"a plan must be a fxprune.Plan, not {type(plan).__name__}", do="make one with analysis.plan(...)"
        )
    solution = findings.solution
    if plan.structure is not None:
        _refuse_other(plan.structure, structure_of(findings, solution.no_channel(), plan.removed))
    gone = _slots_that_go(findings, plan)
    removal = Removal(solution, solution.channels_within(gone))
    for axis, want in zip(solution.axes, gone, strict=True):
        _refuse_halves(axis, want, removal)
    if plan.structure is not None and plan.structure.coupled:
        _refuse_other(plan.structure, structure_of(findings, removal.removed, plan.removed))
    return removal


def _slots_that_go(findings: Findings, plan: Plan) -> list[Bools]:
    """Per axis of the solution, which of its slots a plan names."""
    gone = {(axis.parameter, axis.dim): np.zeros(axis.vector.size, dtype=bool) for axis in findings.solution.axes}
    for name, dims in plan.removed.items():
        parameter = findings.first_name(name)
        if parameter not in findings.tensors:
            raise _other_model(f'it removes from "{name}"', nearest(name, findings.tensors))
        shape = tuple(findings.tensors[parameter].shape)
        for dim, indices in dims.items():
            if not 0 <= dim < len(shape):
                raise _other_model(f'it removes from dimension {dim} of "{name}"', f"its shape is {shape}")
            if not indices:
                continue
            if min(indices) < 0 or max(indices) >= shape[dim]:
                what = f'it removes index {max(indices)} of "{name}" dimension {dim}'
                raise _other_model(what, f"its shape is {shape}")
            if (parameter, dim) not in gone:
                raise _other_model(f'it removes from "{name}" dimension {dim}', "nothing can be removed there")
            gone[parameter, dim][np.asarray(indices)] = True
    return list(gone.values())


def _refuse_halves(axis: Axis, want: Bools, removal: Removal) -> None:
    """Raise `PlanError` where a plan names other slots of an axis than those of whole channels."""
    kept = removal.kept(axis.vector)
    have = np.zeros(axis.vector.size, dtype=bool) if kept is None else ~kept
    if (want != have).any():
        index = int(np.flatnonzero(want != have)[0])
        raise _other_model(
            f'it would remove index {index} of "{axis.parameter}" dimension {axis.dim} alone',
            "in this model that slot is coupled to others which the plan keeps, or cannot go",
        )


def _refuse_other(made_for: Structure, here: Structure) -> None:
    there, instead = made_for.difference(here)
    if there:
        raise _other_model(f"where it was made {there}", f"here {instead}")


def _other_model(what: str, why: str) -> PlanError:
    return PlanError(f"the plan is for another model: {what}", why=why, do="make the plan with this model's `analyze`")


def _check_round_to(round_to: int) -> None:
    if isinstance(round_to, bool) or not isinstance(round_to, numbers.Integral) or round_to < 1:
        raise PlanError(f"round_to must be an integer of at least 1, not {round_to!r}")


def _check_ratio(ratio: Any) -> float:
    if isinstance(ratio, bool) or not isinstance(ratio, numbers.Real) or not 0 <= float(ratio) < 1:
        raise PlanError(
            f"ratio must be a number in [0, 1), not {ratio!r}",
            why="it is the share of channels that go; at least one channel of a group stays",
        )
    return float(ratio)


def _ratios(findings: Findings, ratio: Any) -> list[float]:
    """The share of every group, by number; groups that no pattern of a dict names stay."""
    if not isinstance(ratio, Mapping):
        return [_check_ratio(ratio)] * len(findings.groups)
    shares = {pattern: _check_ratio(share) for pattern, share in ratio.items()}
    chosen = by_group(findings, shares, what="ratio")
    return [chosen.get(number, 0.0) for number in range(len(findings.groups))]


def _why_nothing(
    findings: Findings, ratios: list[float], stay: set[int], exact: bool, round_to: int
) -> tuple[str, ...]:
    if not findings.groups:
        held = [str(locked) for locked in findings.locked[:5]]
        return ("no channel of this model can be removed", *held)
    if not any(ratios):
        return ("the ratio is 0",)
    open_groups: list[Group] = [g for g in findings.groups if g.number not in stay]
    if not open_groups:
        cause = "ignored or inexact (exact=True)" if exact else "ignored"
        return (f"all {len(findings.groups)} groups are {cause}",)
    largest = max(open_groups, key=len)
    return (
        f"rounding leaves every group whole: the largest has {largest.size} channels "
        f'("{largest.name}"), ratio {max(ratios)}, round_to {round_to}',
    )
