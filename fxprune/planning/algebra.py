"""Plans and plans: what stays, two in one, and where two differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fxprune.errors import PlanError, nearest
from fxprune.planning.plan import Plan, Removed
from fxprune.planning.ranges import between, indices_of, spans_of, text_of
from fxprune.planning.sizes import Size
from fxprune.planning.structure import Structure


@dataclass(frozen=True)
class PlanDiff:
    """What two plans for one model do not have in common; prints as a list, and is false where there is nothing.

    only_first, only_second: parameter or buffer -> {dimension: indices} that one plan removes and the other keeps.
    """

    only_first: Removed = field(default_factory=dict)
    only_second: Removed = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.only_first or self.only_second)

    def __str__(self) -> str:
        lines = []
        for name in dict.fromkeys([*self.only_first, *self.only_second]):
            ours, theirs = self.only_first.get(name, {}), self.only_second.get(name, {})
            for dim in sorted({*ours, *theirs}):
                parts = (
                    f"only the {which} {text_of(spans_of(part[dim]))}"
                    for which, part in (("first", ours), ("second", theirs))
                    if dim in part
                )
                lines.append(f"{name}[{dim}]: {', '.join(parts)}")
        return "\n".join(lines) or "both remove the same"


def structure_needed(plan: Plan, what: str) -> Structure:
    """The structure of a plan. Raises `PlanError` where it has none."""
    if plan.structure is None:
        raise PlanError(
            f"the plan does not know {what}",
            why="it was written by hand, so no shapes are known",
            do="take one from analysis.plan(...), or record(small).plan",
        )
    return plan.structure


def kept(plan: Plan) -> Removed:
    """What stays in every dimension that loses something."""
    shapes = structure_needed(plan, "what stays").shapes
    return {
        name: {dim: indices_of(between(spans_of(gone), shapes[name][dim])) for dim, gone in dims.items()}
        for name, dims in plan.removed.items()
    }


def shapes_after(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the small model."""
    shapes = structure_needed(plan, "what it leaves").shapes
    return {name: _after(plan, name, shape) for name, shape in shapes.items()}


def _after(plan: Plan, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    gone = plan.removed.get(name, {})
    return tuple(size - len(gone.get(dim, ())) for dim, size in enumerate(shape))


def then(first: Plan, second: Plan) -> Plan:
    """Both in one, in the numbering of the first plan's model.

    Which channels of the original went together is not known of the result: its fingerprint has names and shapes only.
    Constants that the graph of the small model has, and the original has not, follow without being named.
    """
    structure = structure_needed(first, "what it leaves")
    later = {} if second.structure is None else second.structure.shapes
    shapes = {
        **structure.shapes,
        **{n: later[n] for n in structure.outside if n in later and n not in structure.shapes},
    }
    constants = () if second.structure is None else {*second.structure.outside} - {*shapes, *structure.outside}
    cut = {name: dims for name, dims in second.removed.items() if name not in constants}
    _refuse_unless_small(first, second, shapes, cut)
    removed: Removed = {}
    for name, shape in shapes.items():
        before, after = first.removed.get(name, {}), cut.get(name, {})
        for dim in sorted({*before, *after}):
            both = _renumbered(shape[dim], before.get(dim, []), after.get(dim, []))
            removed.setdefault(name, {})[dim] = both
    return Plan(
        removed,
        (*first.reasons, *second.reasons),
        _zeroed_by_both(first, second, shapes),
        tuple(dict.fromkeys((*first.biases, *second.biases))),
        tuple(dict.fromkeys((*first.maps, *second.maps))),
        _sizes(first.sizes, second.sizes),
        Structure(shapes, (), structure.outside),
        first.path if second.path in ("", "fx") else second.path,  # a graph is pruned as the graph it is
    )


def _refuse_unless_small(
    first: Plan, second: Plan, shapes: Mapping[str, tuple[int, ...]], cut: Mapping[str, Mapping[int, list[int]]]
) -> None:
    after = {name: _after(first, name, shape) for name, shape in shapes.items()}
    for name, shape in ({} if second.structure is None else second.structure.shapes).items():
        if name in after and shape != after[name]:
            raise _not_after(f'it was made where "{name}" has shape {shape}', f"the first plan leaves {after[name]}")
    for name, dims in cut.items():
        if name not in after:
            raise _not_after(f'it removes from "{name}"', nearest(name, after))
        for dim, indices in dims.items():
            size = after[name][dim] if 0 <= dim < len(after[name]) else 0
            if not {*indices} <= {*range(size)}:
                why = f"the first plan leaves shape {after[name]}"
                raise _not_after(f'it removes index {max(indices)} of "{name}" dimension {dim}', why)


def _not_after(what: str, why: str) -> PlanError:
    return PlanError(
        f"the second plan is not for the model that the first one leaves: {what}",
        why=why,
        do="make it by `analyze` of the small model",
    )


def _renumbered(size: int, before: list[int], after: list[int]) -> list[int]:
    """Indices that go at first, and those among the rest that go then, by the numbers that all had at first."""
    stays = np.ones(size, dtype=bool)
    stays[before] = False
    stays[np.flatnonzero(stays)[after]] = False
    made: list[int] = np.flatnonzero(~stays).tolist()
    return made


def _zeroed_by_both(first: Plan, second: Plan, shapes: Mapping[str, tuple[int, ...]]) -> Removed | None:
    """What a reference sets to zero: the first plan's, and the second's in the original's numbering."""
    if first.zeroed is None and second.zeroed is None:
        return None
    made: Removed = {}
    ours = first.removed if first.zeroed is None else first.zeroed
    theirs = second.removed if second.zeroed is None else second.zeroed
    for name in shapes:
        for dim in sorted({*ours.get(name, {}), *theirs.get(name, {})}):
            gone = first.removed.get(name, {}).get(dim, [])
            later = _renumbered(shapes[name][dim], gone, theirs.get(name, {}).get(dim, []))
            zero = {*ours.get(name, {}).get(dim, []), *(set(later) - set(gone))}
            made.setdefault(name, {})[dim] = sorted(zero)
    return made


def _sizes(first: tuple[Size, ...], second: tuple[Size, ...]) -> tuple[Size, ...]:
    """The old values of the first, the new ones of the second, one after the other."""
    made = {size.place: size for size in first}
    for size in second:
        before = made.get(size.place)
        made[size.place] = size if before is None else Size(*size.place, before.old, size.new)
    return tuple(size for size in made.values() if size.old != size.new)


def diff(first: Plan, second: Plan) -> PlanDiff:
    """What one plan removes and the other keeps."""
    if first.structure is not None and second.structure is not None:
        there, here = Structure(first.structure.shapes).difference(Structure(second.structure.shapes))
        if there:
            raise PlanError(
                "the plans are for different models",
                why=f"for the first {there}, for the second {here}",
                do="compare plans that were made for one model",
            )
    return PlanDiff(_without(first.removed, second.removed), _without(second.removed, first.removed))


def _without(ours: Removed, theirs: Removed) -> Removed:
    made: Removed = {}
    for name, dims in ours.items():
        for dim, indices in dims.items():
            other = set(theirs.get(name, {}).get(dim, ()))
            alone = [index for index in indices if index not in other]
            if alone:
                made.setdefault(name, {})[dim] = alone
    return made
