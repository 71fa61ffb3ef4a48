"""The part of `transform` that is about branches: the model that is analysed, its budgets, and what the record says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fxprune._attempt import Result
from fxprune._drop import (
    Branches,
    WithoutBranches,
    compared,
    compared_whole,
    drop,
    drop_layers,
    find_branches,
    given_up,
)
from fxprune._find import AnalyzeArguments
from fxprune._record import Record
from fxprune.capture.tensors import Tensors
from fxprune.configs import ChangedByHandError, LayersStayError, NotBuiltError
from fxprune.configs.layers import with_fewer_layers
from fxprune.costs import Cost, cost
from fxprune.depth.carry_out import without_dropped
from fxprune.depth.dropped import Dropped
from fxprune.depth.numbering import LayersGone
from fxprune.depth.patterns import for_the_rest
from fxprune.errors import PlanError
from fxprune.planning.budgets import UNITS, budgets_of, checked_keys
from fxprune.planning.figures import TIMED, Figures, pairs_of, with_measured
from fxprune.planning.plan import Plan
from fxprune.planning.uniform import by_config
from fxprune.report.layer_graph import with_layers

CHANNELS = ("ratio", "masks", "keep", "counts")
"""The options that ask for channels to go."""


@dataclass(frozen=True, eq=False)
class Shallow:
    """The model that is analysed: the given one, or a copy of it without some branches.

    choices: the options for the rest of the model. before: the cost of the original, None if nothing was dropped.
    error: of the comparison of the two. alone: True if nothing but branches goes.
    """

    model: nn.Module
    choices: Mapping[str, Any]
    original: nn.Module
    dropped: tuple[Dropped, ...] = ()
    before: Cost | None = None
    error: float | None = None
    reasons: tuple[str, ...] = field(default=())
    alone: bool = False

    def added(self, result: Result) -> Result:
        """The result with the branches in its plan."""
        if not self.dropped:
            return result
        reasons = () if self.alone else result.plan.reasons
        return replace(result, plan=replace(result.plan, dropped=self.dropped, reasons=reasons))

    def recorded(self, record: Record) -> Record:
        """The record of a model that was made from this one, as one of the original."""
        if not self.dropped:
            return replace(record, reasons=(*record.reasons, *self.reasons))
        tensors = Tensors.of(self.original)
        whole = {name: tuple(t.shape) for name, t in tensors.items()}
        errors = [error for error in (record.error, self.error) if error is not None]
        branches = [str(one) for one in self.dropped if not one.is_layer]
        texts = [f"residual branches went whole: {', '.join(branches)}"] if branches else []
        owners = {name.rpartition(".")[0] for name in whole.keys() - record.before.keys()} - {""}
        return replace(
            record,
            flow=None if record.flow is None else with_layers(record.flow, self.original, owners),
            before={**whole, **record.before},
            cost=None if record.cost is None or self.before is None else (self.before, record.cost[1]),
            error=max(errors, default=None),
            reasons=(*texts, *record.reasons, *self.reasons),
        )


def asked_to_drop(choices: Mapping[str, Any]) -> bool:
    """True if options name branches. An empty list names none."""
    asked = choices.get("drop", ())
    return not (isinstance(asked, (list, tuple, set, frozenset)) and not asked) and asked is not None


def check_depth(choices: Mapping[str, Any], *, plan: bool, data: bool) -> bool:
    """True if a request lets branches go within its budget.

    plan: True if a plan is given. data: True if data are. Raises `PlanError` for a request that makes no sense.
    """
    if choices.get("depth", False) is False:
        return False
    if choices["depth"] is not True:
        raise PlanError(f"depth is True or False, not {choices['depth']!r}", do="name branches with drop")
    if plan or choices.get("keep") is None:
        why = "a plan says already which channels go" if plan else "there is no budget that branches could help to meet"
        raise PlanError(
            "depth is without effect here", why=why, do='pass keep={"macs": 0.5}, or name branches with drop'
        )
    if not data:
        why = "branches are chosen by what small models are worth, which is measured"
        raise PlanError(
            "depth=True needs data", why=why, do="pass repair=batches, some hundred samples, or data=batches"
        )
    return True


def without_branches(call: AnalyzeArguments, plan: Plan | None, choices: Mapping[str, Any]) -> Shallow:
    """The model without the branches that a plan drops or that the options name.

    Raises `PlanError` if there are no such branches, `VerificationError` if none can be taken out without an error.
    """
    model, others = call.model, {name: value for name, value in choices.items() if name not in ("drop", "depth")}
    if plan is not None and isinstance(plan, Plan) and plan.dropped:
        return Shallow(
            without_dropped(model, plan.dropped),
            others,
            model,
            plan.dropped,
            cost(model, call.example_inputs),
            reasons=tuple(given_up(call.model, plan.dropped)),
        )
    if not asked_to_drop(choices):
        return Shallow(model, others, model)
    found = find_branches(call)
    made = drop_layers(call, found, choices["drop"]) if by_config(choices.get("uniform")) else None
    return shallow_of(found, made or drop(found, choices["drop"]), others, call.example_inputs)


def shallow_of(found: Branches, made: WithoutBranches, choices: Mapping[str, Any], example_inputs: Any) -> Shallow:
    """The model without some branches, with the options for the rest of it."""
    left = dict(made.model.named_parameters(remove_duplicate=False))
    gone = frozenset(name for name, _ in found.model.named_parameters(remove_duplicate=False) if name not in left)
    named = for_the_rest(found.model, choices, gone, [dropped.name for dropped in made.dropped])
    others = _for_the_rest(named, found, made.model, example_inputs)
    alone = all(others.get(name) is None for name in CHANNELS)
    if alone:
        others["ratio"] = 0.0
    return Shallow(made.model, others, found.model, made.dropped, found.cost, made.error, made.reasons, alone)


def _for_the_rest(choices: Mapping[str, Any], found: Branches, model: nn.Module, example_inputs: Any) -> dict[str, Any]:
    """The options for a model without branches: budgets are those of the original, and left out where they are met."""
    keep = choices.get("keep")
    if keep is not None:
        left = budgets_left(keep, found.model, model, example_inputs, found.cost)
        choices = {**choices, "keep": left or None, **({} if left else {"scope": "local"})}
    return dict(choices)


def budgets_left(
    keep: Any, original: nn.Module, model: nn.Module, example_inputs: Any, whole: Cost | None = None
) -> dict[str, Any]:
    """The budgets that the model without branches is not within yet, in figures of their own.

    whole: the cost of the original, if it is known.
    """
    keys, whole = checked_keys(keep), whole or cost(original, example_inputs)
    before, after = _figures(whole, cost(model, example_inputs), keys, original, model, example_inputs)
    left: dict[str, Any] = {}
    for budget in budgets_of(before, keep, whole.uncounted):
        now = budget.of(after)
        if now > budget.limit:
            if budget.key in TIMED:
                left[budget.key] = f"{budget.limit * 1e9} ns"
            else:  # with its unit, as a small integer is taken for a percentage
                left[budget.key] = f"{max(2, math.floor(budget.limit))} {UNITS[budget.key][0]}"
    return left


def _figures(
    whole: Cost, less: Cost, keys: tuple[str, ...], original: nn.Module, model: nn.Module, example_inputs: Any
) -> tuple[Figures, Figures]:
    """The figures of the original and of the model without branches."""
    before, after = with_measured((whole, less), pairs_of(original, model, example_inputs, keys))
    return before, after


def counted_from_zero(small: nn.Module, call: AnalyzeArguments) -> tuple[nn.Module, LayersGone]:
    """A small model whose layers are those of a config with fewer of them, and the positions of those that are gone.

    small: it is not changed; modules that pass their input on stand for these layers.
    Raises `PlanError` where no config says it, `VerificationError` if the result is not the same model.
    """
    try:
        made, gone = with_fewer_layers(small)
    except (LayersStayError, NotBuiltError, ChangedByHandError) as error:
        raise PlanError(
            f"no {type(small.config).__name__} says the model without these branches",
            why=str(error),
            do='leave out uniform="config", or drop whole layers that are alike',
        ) from None
    if gone:
        compared_whole(small, made, replace(call, model=small))
    return made, gone


def error_without_branches(call: AnalyzeArguments, dropped: tuple[Dropped, ...]) -> tuple[nn.Module, float]:
    """A model without the branches of a plan, and its error against the original.

    Raises `PlanError` if the model has no such branches.
    """
    model = without_dropped(call.model, dropped)
    layers = tuple(one for one in dropped if one.is_layer)
    found = find_branches(replace(call, model=without_dropped(call.model, layers)) if layers else call)
    by_name = {branch.name: branch for branch in found.branches}
    missing = [one.name for one in dropped if one not in layers and one.name not in by_name]
    if missing:
        raise PlanError(
            f'the plan drops a branch that the model has not: "{missing[0]}"',
            why="what it names is no residual branch on these inputs",
            do="pass inputs like those that the plan was made on",
        )
    error = compared(found, model, [by_name[one.name] for one in dropped if one not in layers])
    return model, 0.0 if error is None else error
