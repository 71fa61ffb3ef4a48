"""The differences of two plans for one model."""

from __future__ import annotations

from dataclasses import dataclass, field

from fxprune.errors import PlanError
from fxprune.planning.factors import Factor
from fxprune.planning.fields import PlanFields, Removed
from fxprune.planning.ranges import spans_of, text_of
from fxprune.planning.structure import Structure


@dataclass(frozen=True)
class PlanDiff:
    """The indices that only one of two plans for one model removes.

    As text it is a list of them; as a bool it is False if both plans remove the same.

    only_first, only_second: parameter or buffer -> {dimension: indices} that one plan removes and the other keeps.
    factors_first, factors_second: the factors that only one of them has, where both have some.
    dropped_first, dropped_second: the names of the branches that only one of them drops.
    norms: those of the first and of the second, "kept" or "preserve", where they differ; else empty. A plan that was
        written by hand has none.
    """

    only_first: Removed = field(default_factory=dict)
    only_second: Removed = field(default_factory=dict)
    factors_first: tuple[Factor, ...] = ()
    factors_second: tuple[Factor, ...] = ()
    dropped_first: tuple[str, ...] = ()
    dropped_second: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        others = self.dropped_first or self.dropped_second or self.norms
        return bool(self.only_first or self.only_second or self.factors_first or self.factors_second or others)

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
        for which, names in (("first", self.dropped_first), ("second", self.dropped_second)):
            lines += [f"only the {which} drops {name}" for name in names]
        lines += [f"only the first: {factor}" for factor in self.factors_first]
        lines += [f"only the second: {factor}" for factor in self.factors_second]
        if self.norms:
            lines.append(f'norms: "{self.norms[0]}" in the first, "{self.norms[1]}" in the second')
        return "\n".join(lines) or "both remove the same"


def diff(first: PlanFields, second: PlanFields) -> PlanDiff:
    """The indices that one plan removes and the other keeps. Raises `PlanError` for plans for different models."""
    if first.structure is not None and second.structure is not None:
        there, here = _whole(first, first.structure).difference(_whole(second, second.structure))
        if there:
            raise PlanError(
                "the plans are for different models",
                why=f"for the first {there}, for the second {here}",
                do="compare plans that were made for one model",
            )
    ours, theirs = first.factors, second.factors
    known = bool(ours and theirs)
    by_hand = first.structure is None or second.structure is None
    return PlanDiff(
        _without(first.removed, second.removed),
        _without(second.removed, first.removed),
        tuple(factor for factor in ours if known and factor not in theirs),
        tuple(factor for factor in theirs if known and factor not in ours),
        tuple(one.name for one in first.dropped if one.name not in {other.name for other in second.dropped}),
        tuple(one.name for one in second.dropped if one.name not in {other.name for other in first.dropped}),
        () if by_hand or first.norms == second.norms else (first.norms, second.norms),
    )


def _whole(plan: PlanFields, structure: Structure) -> Structure:
    """The names and shapes of the model that a plan is for, with the tensors of the branches that it drops."""
    return Structure({**structure.shapes, **{name: s for one in plan.dropped for name, s in one.tensors.items()}})


def _without(ours: Removed, theirs: Removed) -> Removed:
    """The indices of `ours` that `theirs` lacks."""
    made: Removed = {}
    for name, dims in ours.items():
        for dim, indices in dims.items():
            other = set(theirs.get(name, {}).get(dim, ()))
            alone = [index for index in indices if index not in other]
            if alone:
                made.setdefault(name, {})[dim] = alone
    return made
