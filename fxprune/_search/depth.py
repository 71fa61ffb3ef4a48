"""`depth=True`: the residual branches that go within a budget, chosen by measuring small models after their repair.

Branches are ordered by how much the outputs change without each, per cost that it frees. Then small models are made
within the budget: with all branches, without the first one, the first two and so on; the channels make up for the rest.
The best one, by the measure, says which branches go. So the choice is never worse than that of channels alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from fxprune._attempt import Request
from fxprune._drop import Branches, without
from fxprune._dropping import Shallow, shallow_of
from fxprune._first_result import first_result
from fxprune._repair import RepairSettings, repaired
from fxprune._repair.batches import DataPart
from fxprune._repair.lanes import Model
from fxprune._repair.outputs import relative_squared_error
from fxprune._search.measure import Measure
from fxprune._search.samples import Samples, evaluating
from fxprune._search.steps import SavedSteps, Values, run_of
from fxprune.capture.captured import FrontEnd
from fxprune.costs import cost_of
from fxprune.criteria import Importance
from fxprune.depth.branches import Branch
from fxprune.depth.gone import by_addition
from fxprune.depth.patterns import named_by
from fxprune.depth.reference import DroppedAdditions
from fxprune.errors import FxpruneError, PlanError
from fxprune.files import PathLike
from fxprune.planning.budgets import above
from fxprune.planning.figures import with_measured
from fxprune.planning.scopes import SEARCH

PARTS = 4
"""The most batches on which the change without a branch is measured."""

Chosen = tuple[Branch, ...]


@dataclass(frozen=True, eq=False)
class DepthRequest:
    """The things that every small model of a choice of branches is made from.

    found: the branches. named: those that go in any case. request: with the original, and the options of the user.
    importance: a function from a model to the importance of its channels. repairs: True to repair before measuring.
    file: that of the search, beside which another one has the models that were measured.
    """

    found: Branches
    named: Chosen
    request: Request
    paths: Sequence[FrontEnd]
    importance: Callable[[nn.Module], Importance]
    samples: Samples
    measure: Measure
    settings: RepairSettings
    repairs: bool
    free: bool
    file: PathLike | None = None


def chosen_branches(asked: DepthRequest) -> tuple[Chosen, str]:
    """The branches that go, and a sentence about what was measured.

    Raises as `transform` if no small model can be made.
    """
    free = [branch for branch in asked.found.branches if not branch.why_not and branch not in asked.named]
    held = _held(asked.found.model, free, asked.request.choices)
    free = [branch for branch in free if branch.name not in held]
    if not free:
        return asked.named, "; ".join(["depth: the model has no residual branch that can go", *held.values()])
    changes = influences(asked.found.model, free, asked.samples)
    keys = tuple(asked.request.choices["keep"])
    order = sorted(free, key=lambda branch: changes[branch.name] / freed(branch, keys))
    trials = _Trials(asked, _steps(asked))
    for count in _counts(len(order)):
        met = trials.measure((*asked.named, *order[:count]))
        if met and count:
            break
    trials.near(order)
    if asked.request.choices.get("scope") == SEARCH:
        trials.moves(order)
    chosen, text = trials.best()
    return chosen, "; ".join([text, *held.values()])


def _steps(asked: DepthRequest) -> SavedSteps:
    """The models that a file beside that of the search has, if there is one."""
    named = [branch.name for branch in asked.named]
    about = run_of(
        asked.found.model, asked.measure, asked.samples, asked.request.choices, mode=asked.settings.mode, named=named
    )
    path = None if asked.file is None else Path(asked.file)
    beside = None if path is None else path.with_name(f"{path.stem}.branches{path.suffix}")
    return SavedSteps(beside, "fxprune.branches-run/1", about)


def _held(model: nn.Module, branches: Iterable[Branch], choices: Mapping[str, Any]) -> dict[str, str]:
    """Name of a branch that an option names -> a sentence that it stays. It is about channels that would be gone."""
    named = named_by(model, choices)
    held = {}
    for branch in branches:
        for option, pattern, tensors in named:
            if all(name.startswith(tuple(f"{module}." for module in branch.modules)) for name in tensors):
                held[branch.name] = f"branch {branch.name} stays: {option} names {pattern}"
    return held


def influences(model: nn.Module, branches: Iterable[Branch], samples: Samples) -> dict[str, float]:
    """Name of a branch -> the relative squared error of the model's outputs without it, on the first batches."""
    parts = [DataPart(inputs, number) for number, inputs in enumerate(samples.repairing[:PARTS])]
    found = {}
    with evaluating(model):
        wanted = [Model(model).run(part) for part in parts]
        for branch in branches:
            made = [_run_without(model, branch, part) for part in parts]
            found[branch.name] = relative_squared_error(zip(made, wanted, strict=True))
    return found


def _run_without(model: nn.Module, branch: Branch, part: DataPart) -> Any:
    """The outputs of a model with zeros in the place of a branch."""
    with contextlib.ExitStack() as stack:

        def begin(copied: nn.Module) -> None:
            stack.enter_context(DroppedAdditions(copied, by_addition([branch.place])).watching())

        return Model(model).run(part, begin)


def freed(branch: Branch, keys: Sequence[str]) -> float:
    """The cost that goes with a branch: parameters for a budget of these, else multiply-adds."""
    counted = branch.macs if branch.macs and not {*keys} <= {"params", "bytes"} else branch.params
    return float(max(counted, 1))


def _counts(most: int) -> Iterator[int]:
    """The numbers of branches that are tried: 0 to 4, then each about a third more.

    >>> list(_counts(14))
    [0, 1, 2, 3, 4, 6, 8, 11, 14]
    """
    count = 0
    while count < most:
        yield count
        count += max(1, (count + 2) // 3)
    yield most


@dataclass
class _Trials:
    """The small models that were measured: names of the branches that go -> (misses a budget, merit), and the value."""

    asked: DepthRequest
    steps: SavedSteps
    seen: dict[frozenset[str], tuple[tuple[bool, float], float, Chosen]] = field(default_factory=dict)
    failed: list[FxpruneError] = field(default_factory=list)

    def measure(self, branches: Chosen) -> bool:
        """Measure the small model without some branches. True if these alone meet the budget, or cannot go."""
        key = frozenset(branch.name for branch in branches)
        if key in self.seen:
            return False
        found = self.steps.get(", ".join(sorted(key)) or "all branches", lambda: self._measured(branches))
        if isinstance(found.get("failed"), str):
            if not self.failed:
                self.failed.append(PlanError(found["failed"]))
            return False
        value = float(found["value"])
        self.seen[key] = (not found["missed"], self.asked.measure.merit(value)), value, branches
        return bool(found["alone"])

    def _measured(self, branches: Chosen) -> Values:
        """The value of a small model, 1 if it misses a budget, and 1 if no channel has to go; or why there is none."""
        asked = self.asked
        try:
            shallow = self._without(branches)
            choices = dict(shallow.choices)
            if choices.get("scope") == SEARCH:
                choices["scope"] = "local"
            choices["importance"] = asked.importance(shallow.model)
            call = replace(asked.request.call, model=shallow.model)
            request = replace(asked.request, call=call, choices=choices, verify=False, known={})
            made = shallow.added(first_result(request, asked.paths, may_give_up_class=asked.free))
        except FxpruneError as error:
            self.failed.append(error)
            return {"failed": str(error)}
        small = made.small
        if asked.repairs:
            small, _ = repaired(small, asked.found.model, asked.samples.repairing, made.plan, asked.settings)
        value = asked.measure.of(small)
        left = cost_of(made.analysis, made.removal, made.constants)
        missed = bool(above(*with_measured((asked.found.cost, left), {}), asked.request.choices["keep"]))
        return {"value": value, "missed": int(missed), "alone": int(shallow.choices.get("keep") is None)}

    def _without(self, branches: Chosen) -> Shallow:
        asked = self.asked
        choices = asked.request.choices
        if not branches:
            return Shallow(asked.found.model, choices, asked.found.model)
        return shallow_of(asked.found, without(asked.found, branches), choices, asked.request.call.example_inputs)

    def near(self, order: Sequence[Branch]) -> None:
        """Measure one branch more and one less than the best number."""
        named = self.asked.named
        count = len(self._best()[2]) - len(named)
        for other in (count - 1, count + 1):
            if 0 <= other <= len(order):
                self.measure((*named, *order[:other]))

    def moves(self, order: Sequence[Branch]) -> None:
        """Measure models that differ from the best one in one branch, until none of them is better."""
        tried: set[str] = set()
        while True:
            before = self._best()
            chosen = before[2]
            for branch in (b for b in order if b.name not in tried):
                tried.add(branch.name)
                self.measure(tuple(b for b in chosen if b != branch) if branch in chosen else (*chosen, branch))
                if self._best() is not before:
                    break
            else:
                return

    def _best(self) -> tuple[tuple[bool, float], float, Chosen]:
        """The best of all; of equal ones the first. Raises the first error if no model could be made."""
        if not self.seen:
            raise self.failed[0]
        return max(self.seen.values(), key=lambda one: one[0])

    def best(self) -> tuple[Chosen, str]:
        """The branches of the best one, and a sentence."""
        _, value, chosen = self._best()
        name = self.asked.measure.name
        with_all = self.seen.get(frozenset(branch.name for branch in self.asked.named))
        before = "" if with_all is None else f", that with all branches {with_all[1]:.4g}"
        more = [branch.name for branch in chosen if branch not in self.asked.named]
        count = f"depth: {len(self.seen)} small models were measured"
        text = f"{count}: the {name} without {', '.join(more)} is {value:.4g}"
        if not more:
            text, before = f"{count}: that with all branches is best, its {name} is {value:.4g}", ""
        return tuple(b for b in self.asked.found.branches if b in chosen), text + before
