"""Groups of parameters that forward reads and that reach no result, such as an embedding that only a loss uses.

Nothing that is observed depends on them, and code that is not observed may count on their width: a plain ratio leaves
them.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from fxprune.analysis.findings import Findings
from fxprune.analysis.steps import Step, Steps
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


def groups_without_result(findings: Findings) -> frozenset[int]:
    """The numbers of the groups of parameters that forward reads and that reach no result.

    What one setting counts goes together: a projection of as many heads as one that reaches a result is left out. There
    are none where forward leaves torch and comes back, since what reaches a result is not known then, and none where
    hooks fill up what a layer loses.
    """
    captured, steps = findings.captured, findings.observed.steps
    if captured.needs_hooks or (captured.real and not steps.whole):
        return frozenset()
    reaching = names_behind_results(steps)
    found = {g.number for g in findings.groups if reaching.isdisjoint(m.parameter for m in g.members)}
    if not found:
        return frozenset()
    live = findings.solution.channels_in(axis.vector for axis in findings.axes if axis.parameter in reaching)
    parts = [
        findings.solution.channels_in(vector for use in part for vector in use.vectors) for part in findings.uses.parts
    ]
    while more := [part for part in parts if (part & live).any() and (part & ~live).any()]:
        live = np.logical_or.reduce([live, *more])
    return frozenset(found.difference(findings.solution.groups_with(live)))
