"""Slots that only parameters have which forward reads and which reach no result.

Examples are an embedding of the labels that only a loss uses, and a head whose result is given away.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from fxprune.analysis.steps import Step, Steps
from fxprune.analysis.uses import Uses
from fxprune.channels.groups import Axis
from fxprune.channels.terms import Terms
from fxprune.channels.vector import Atoms, Vector
from fxprune.ops.factors import Value, values_in

_MAKE_ZEROS = ("aten::zeros", "aten::zeros_like", "aten::new_zeros")
_HAND_ON = ("aten::detach", "aten::lift_fresh", "aten::_to_copy")


def names_behind_results(steps: Steps) -> set[str]:
    """The names of the parameters and buffers from which a tensor that leaves the model is computed."""
    needed, zeros = set(steps.results), _zeros(steps)
    for step in reversed(steps.done):
        if not needed.isdisjoint(step.made):
            needed.update(_counting(step, zeros))
    return {value.name for value in needed if value.name is not None}


def _zeros(steps: Steps) -> set[Value]:
    """The tensors that forward has just made of zeros."""
    zeros = set[Value]()
    for step in steps.done:
        if step.name in _MAKE_ZEROS or (step.name in _HAND_ON and all(v in zeros or v.number == 0 for v in step.read)):
            zeros.update(step.made)
    return zeros


def _counting(step: Step, zeros: Collection[Value]) -> list[Value]:
    """The tensors that an operation reads, without those that it multiplies by 0, as `loss + 0 * unused.sum()`."""
    arguments = step.raw
    if step.name in ("aten::mul", "aten::mul_") and any(a in zeros or _is_zero(a) for a in arguments.values()):
        return []
    if _is_zero(arguments.get("alpha")):  # `torch.add(x, y, alpha=0)`
        return list(values_in(arguments["self"]))
    return step.read


def _is_zero(argument: object) -> bool:
    return isinstance(argument, (int, float)) and argument == 0


def slots_without_result(
    terms: Terms, read: Sequence[Axis], reaching: Collection[str], uses: Uses
) -> dict[Axis, Vector]:
    """The slots of the parameters that reach no result, without those that go with slots of others.

    What one setting counts goes together: a projection of as many heads as one that reaches a result is left out.

    read: the dimensions of all parameters and buffers that forward reads. reaching: the names of those that reach a
    result.
    """
    dead = [axis for axis in read if axis.parameter not in reaching]
    if not dead:
        return {}
    others = {id(v): v for v in (axis.vector.representative for axis in read if axis.parameter in reaching)}
    atoms = _with_counted(terms, _atoms(terms, list(others.values())), uses)
    slots = {axis: axis.vector.take(np.flatnonzero(~terms.having(axis.vector, atoms))) for axis in dead}
    return {axis: vector for axis, vector in slots.items() if vector.size}


def _with_counted(terms: Terms, atoms: Atoms, uses: Uses) -> Atoms:
    """Some atoms, and those of all that is counted by the settings that count them."""
    parts = [_atoms(terms, [vector for use in part for vector in use.vectors]) for part in uses.parts]
    while added := [part for part in parts if np.isin(part, atoms).any()]:
        parts = [part for part in parts if not np.isin(part, atoms).any()]
        atoms = np.union1d(atoms, np.concatenate(added))
    return atoms


def _atoms(terms: Terms, vectors: Sequence[Vector]) -> Atoms:
    """The free atoms of some vectors."""
    return np.unique(np.concatenate([np.zeros(0, np.int64), *(terms.free(vector) for vector in vectors)]))
