"""Functions of plans: the kept indices, the shapes in the small model, and one plan from two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fxprune.capture.output_paths import OutputPath, in_both, paths_text
from fxprune.channels.groups import Bools
from fxprune.depth.dropped import Dropped
from fxprune.errors import PlanError, nearest
from fxprune.paths import PATHS
from fxprune.planning.factors import Factor, Products
from fxprune.planning.fields import PlanFields, PlanT, Removed
from fxprune.planning.ranges import between, indices_of, spans_of
from fxprune.planning.sizes import Size
from fxprune.planning.structure import Structure


def kept(plan: PlanFields) -> Removed:
    """The indices that stay, for every dimension that loses some. Raises `PlanError` where the shapes are unknown."""
    shapes = plan.known_structure("what stays").shapes
    return {
        name: {dim: indices_of(between(spans_of(gone), shapes[name][dim])) for dim, gone in dims.items()}
        for name, dims in plan.removed.items()
    }


def shapes_after(plan: PlanFields) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the small model. Raises `PlanError` where the shapes are unknown."""
    shapes = plan.known_structure("what it leaves").shapes
    return {name: _after(plan, name, shape) for name, shape in shapes.items()}


def _after(plan: PlanFields, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    gone = plan.removed.get(name, {})
    return tuple(size - len(gone.get(dim, ())) for dim, size in enumerate(shape))


def then(first: PlanT, second: PlanFields) -> PlanT:
    """One plan for two prunings, in the numbering of the model that the first plan is for.

    It is not known which channels of that model are removed together, so the fingerprint of the result has names and
    shapes only. The second plan may cut constants that only the graph of the small model has. They are left out: they
    follow from the analysis.

    Raises `PlanError` where the second plan is not for the model that the first one leaves.
    """
    dropped = _in_first_numbering(first, second.dropped)
    first = without_tensors(first, {name for one in dropped for name in one.tensors})
    structure = first.known_structure("what it leaves")
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
    return replace(
        first,
        removed=removed,
        reasons=(*first.reasons, *second.reasons),
        zeroed=_zeroed_by_both(first, second, shapes),
        biases=tuple(dict.fromkeys((*first.biases, *second.biases))),
        maps=tuple(dict.fromkeys((*first.maps, *second.maps))),
        sizes=_sizes(first.sizes, second.sizes),
        factors=_factors(first, second, shapes, removed),
        structure=Structure(shapes, (), structure.outside),
        path=_path_of_both(first, second),
        versions={},
        outputs=_outputs(first, second),
        dropped=(*first.dropped, *dropped),
        norms=_norms(first, second),
    )


def _in_first_numbering(first: PlanFields, dropped: Sequence[Dropped]) -> list[Dropped]:
    """The branches that a second plan drops, with the shapes that they have in the model of the first."""
    shapes = {} if first.structure is None else first.structure.shapes
    return [replace(one, tensors={n: shapes.get(n, shape) for n, shape in one.tensors.items()}) for one in dropped]


def without_tensors(plan: PlanT, names: set[str]) -> PlanT:
    """A plan for the model that has lost some tensors, which branches took along."""
    if not names or plan.structure is None:
        return plan
    structure = plan.structure
    shapes = {name: shape for name, shape in structure.shapes.items() if name not in names}
    return replace(
        plan,
        removed={name: dims for name, dims in plan.removed.items() if name not in names},
        zeroed=None if plan.zeroed is None else {n: dims for n, dims in plan.zeroed.items() if n not in names},
        factors=tuple(factor for factor in plan.factors if factor.tensor not in names),
        structure=Structure(shapes, (), tuple(name for name in structure.outside if name not in names)),
    )


def _outputs(first: PlanFields, second: PlanFields) -> tuple[OutputPath, ...] | None:
    """The outputs that neither plan changes. Raises `PlanError` where there are none."""
    both = in_both(first.outputs, second.outputs)
    if both == ():
        raise PlanError(
            "the two plans have no output in common",
            why=f"the first keeps {paths_text(first.outputs or ())}, the second {paths_text(second.outputs or ())}",
            do="prune both times with the same outputs",
        )
    return both


def _norms(first: PlanFields, second: PlanFields) -> str:
    """The norms of both plans; one that was written by hand says nothing. Raises `PlanError` where they differ."""
    if second.structure is not None and first.norms != second.norms:
        raise PlanError(
            "the two plans are not one",
            at="Plan.then",
            why=f'the first was made with norms="{first.norms}", the second with "{second.norms}"',
            do="prune both times with the same norms",
        )
    return first.norms


def _refuse_unless_small(
    first: PlanFields, second: PlanFields, shapes: Mapping[str, tuple[int, ...]], cut: Removed
) -> None:
    """Raise `PlanError` where the second plan was not made for the model that the first one leaves."""
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


def _path_of_both(first: PlanFields, second: PlanFields) -> str:
    """The path of the combined plan: that of the second, unless it only says that a graph was pruned again."""
    path = PATHS.get(second.path)
    return first.path if path is None or path.takes_graphs else second.path


def _renumbered(size: int, before: list[int], after: list[int]) -> list[int]:
    """The indices that two plans remove from a dimension, one after the other, in the numbering of the first.

    >>> _renumbered(6, [0, 1], [0, 3])  # 2, 3, 4, 5 are left; then the first and the last of them are removed
    [0, 1, 2, 5]
    """
    stays = np.ones(size, dtype=bool)
    stays[before] = False
    stays[np.flatnonzero(stays)[after]] = False
    made: list[int] = np.flatnonzero(~stays).tolist()
    return made


def _zeroed_by_both(first: PlanFields, second: PlanFields, shapes: Mapping[str, tuple[int, ...]]) -> Removed | None:
    """The indices that the reference of the combined plan sets to zero, None if no plan has folded constants."""
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


def _factors(
    first: PlanFields, second: PlanFields, shapes: Mapping[str, tuple[int, ...]], removed: Removed
) -> tuple[Factor, ...]:
    """The factors of both plans, multiplied. removed: the indices that the combined plan removes."""
    made = Products(shapes, removed)
    for factor in first.factors:
        made.add(factor)
    for factor in second.factors:
        if factor.tensor not in shapes:
            continue  # a constant that only the graph of the small model has
        gone = first.removed.get(factor.tensor, {}).get(factor.dim, [])
        size = shapes[factor.tensor][factor.dim] if factor.slots is not None else 0
        made.add(factor, np.setdiff1d(np.arange(size), gone))
    return made.factors()


def _sizes(first: tuple[Size, ...], second: tuple[Size, ...]) -> tuple[Size, ...]:
    """The sizes of both: where both changed a number, its old value is from the first, the new one from the second."""
    made = {size.place: size for size in first}
    for size in second:
        before = made.get(size.place)
        made[size.place] = size if before is None else Size(*size.place, before.old, size.new)
    return tuple(size for size in made.values() if size.old != size.new)


def kept_flags(plan: PlanFields, name: str, shape: Sequence[int]) -> dict[int, Bools]:
    """Dimension of a parameter or buffer -> flags of the slots that stay, for the dimensions that lose some.

    shape: that of the tensor before.
    """
    flags = {}
    for dim, indices in plan.removed.get(name, {}).items():
        flags[dim] = np.ones(shape[dim], dtype=bool)
        flags[dim][indices] = False
    return flags
