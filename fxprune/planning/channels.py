"""The slots of channels in the tensors of a model, and the channels that a plan removes."""

from __future__ import annotations

import numpy as np

from fxprune.analysis.findings import Findings
from fxprune.channels.groups import Axis, Bools, Removal
from fxprune.errors import PlanError, nearest
from fxprune.planning.fields import PlanFields, Removed
from fxprune.planning.structure import Structure, structure_of


def slots_of(findings: Findings, removed: Bools) -> Removed:
    """The slots of some channels in every parameter and buffer, under all its names. removed: flags of the channels."""
    result: Removed = {}
    for axis, slots in findings.solution.slots_of(removed):
        for name in findings.names_of(axis.parameter):
            result.setdefault(name, {})[axis.dim] = list(slots)
    return result


def removal_of(findings: Findings, plan: PlanFields) -> Removal:
    """The channels of `findings` that a plan removes.

    Raises `PlanError` where the plan names tensors, dimensions or indices that the model lacks, or would cut a
    channel of this model in two: then it was made for another one.
    """
    if not isinstance(plan, PlanFields):
        raise PlanError(
            f"a plan must be a fxprune.Plan, not {type(plan).__name__}", do="make one with analysis.plan(...)"
        )
    solution = findings.solution
    if plan.structure is not None:
        _refuse_other(plan.structure, structure_of(findings, solution.no_channel(), plan.removed))
    named = _named_slots(findings, plan)
    removal = Removal(solution, solution.channels_within(named))
    for axis, want in zip(solution.axes, named, strict=True):
        _refuse_halves(axis, want, removal)
    if plan.structure is not None and plan.structure.coupled:
        _refuse_other(plan.structure, structure_of(findings, removal.removed, plan.removed))
    return removal


def _named_slots(findings: Findings, plan: PlanFields) -> list[Bools]:
    """The slots that a plan removes, as flags for each axis of the solution, in its order.

    Raises `PlanError` where the plan names tensors, dimensions or indices that the model lacks.
    """
    named = {(axis.parameter, axis.dim): np.zeros(axis.vector.size, dtype=bool) for axis in findings.solution.axes}
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
            if (parameter, dim) not in named:
                if all(parameter != known for known, _ in named):
                    raise _not_reached(name, dim)
                raise _other_model(f'it removes from "{name}" dimension {dim}', "nothing can be removed there")
            named[parameter, dim][np.asarray(indices)] = True
    return list(named.values())


def _refuse_halves(axis: Axis, want: Bools, removal: Removal) -> None:
    """Raise `PlanError` where a plan removes only some slots of a channel.

    want: flags of the slots of an axis that the plan removes. removal: the channels that it removes as a whole.
    """
    kept = removal.kept(axis.vector)
    have = np.zeros(axis.vector.size, dtype=bool) if kept is None else ~kept
    if (want != have).any():
        index = int(np.flatnonzero(want != have)[0])
        raise _other_model(
            f'it would remove index {index} of "{axis.parameter}" dimension {axis.dim} alone',
            "in this model that slot is coupled to others which the plan keeps, or cannot go",
        )


def _refuse_other(made_for: Structure, here: Structure) -> None:
    """Raise `PlanError` where a plan was made for a model of another structure."""
    there, instead = made_for.difference(here)
    if there:
        raise _other_model(f"where it was made {there}", f"here {instead}")


def _not_reached(name: str, dim: int) -> PlanError:
    """The error for a tensor that forward does not read."""
    return PlanError(
        f'the example inputs do not reach "{name}"',
        why=f"the plan removes from its dimension {dim}, and forward does not read it on these inputs",
        do="give inputs on which forward reads it: is an optional one missing?",
    )


def _other_model(what: str, why: str) -> PlanError:
    return PlanError(f"the plan is for another model: {what}", why=why, do="make the plan with this model's `analyze`")
