"""`scope="search"`: the widths of groups within a budget, chosen by what small models are worth after their repair."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from torch import nn

from fxprune._attempt import Request, Result
from fxprune._repair import RepairSettings
from fxprune._search.allotment import Allotment, MixedScores, Ranking, like, moved
from fxprune._search.candidates import Candidates, KeptScores, candidates_of
from fxprune._search.measure import Measure, measure_of
from fxprune._search.samples import Samples, samples_of
from fxprune._search.settings import SearchSettings
from fxprune._search.steps import SavedSteps, counted, run_of
from fxprune.capture.inputs import normalize
from fxprune.criteria.from_data import on_data
from fxprune.criteria.losses import Loss
from fxprune.errors import FxpruneError, PlanError, RewriteError
from fxprune.planning.channels import removal_of
from fxprune.planning.plan import Plan
from fxprune.planning.scopes import SCOPES, SEARCH

FIRST_MOVE, LEAST_MOVE, LARGEST_MOVE = 0.5, 0.2, 1.0
"""The standard deviation of the change of a weight's logarithm: at the start, and its bounds."""

MEASURED_TOO = ("obs", "thinet")
"""The criteria that are tried beside that of the request; they need no labels."""

LIGHTER = 0.5
"""The factor of a group's weight where it is tried alone."""

TRIES = 30
"""The most moves that are drawn for one step; those that give a model that was measured already do not count."""


@dataclass(frozen=True)
class SearchData:
    """The data of a search.

    batches: as they were given. pick: a function that picks the inputs out of a batch. loss: of a model and a batch,
    None for the error of the outputs.
    """

    batches: Any
    pick: Callable[[Any], Any] | None
    loss: Loss | None = None


def searched(
    request: Request,
    data: SearchData,
    repair: RepairSettings,
    settings: SearchSettings,
    original: nn.Module | None = None,
) -> Request:
    """The request with the plan of the best small model that was measured within its budget.

    The first one has the even ratio, so that the result is never worse than that, by the measure. Then come those of
    the other scopes and of ThiNet; then moves from the best so far: more of one group goes, and less of the others, or
    other channels of a group. The numbers of a move are drawn by the seed.

    repair: the form of the repair. original: the model that small ones are compared with, if the request has one
    without some branches.

    Raises `PlanError` if nothing can be removed, and as `transform`.
    """
    choices, model = request.choices, request.call.model if original is None else original
    samples = samples_of(model, data.batches, data.pick, judge=settings.score is None)
    measure = measure_of(model, samples, settings.score, data.loss)
    steps = SavedSteps(
        settings.file, "fxprune.search-run/1", run_of(model, measure, samples, choices, mode=repair.mode)
    )
    budget = {"keep": choices["keep"]}
    shared = {name: value for name, value in choices.items() if name not in ("keep", "scope")}
    found = replace(candidates_of(replace(request, choices=shared), budget, samples, repair), original=original)
    criteria, notes = _criteria(found, samples)
    search = _Search(found, measure, steps, criteria, budget)
    search.run(settings, choices.get("seed") or 0)
    captured = found.analysis.captured
    known = {} if captured.real else {captured.path: found.analysis}
    return replace(request, plan=search.plan(notes), known=known, why_not=found.request.why_not)


def _criteria(found: Candidates, samples: Samples) -> tuple[list[KeptScores], list[str]]:
    """The importance of the request, and those in `MEASURED_TOO`; with a sentence for each that cannot be measured."""
    own: KeptScores = found.request.choices["importance"]
    example, batches = normalize(found.request.call.example_inputs), _as_batches(samples.repairing)
    criteria, notes = [own], []
    for name in MEASURED_TOO:
        try:
            criteria.append(KeptScores(on_data(name, found.model, example, data=batches), None))
        except FxpruneError as error:
            notes.append(f'the search did without importance "{name}": {error.what}')
    return criteria, notes


def _as_batches(inputs: Sequence[Any]) -> list[Any]:
    """Batches in the form of example inputs: positional arguments, or keywords."""
    return [dict(kwargs) if kwargs and not args else args for args, kwargs in inputs]


@dataclass
class _Best:
    """The best model so far."""

    value: float
    allotment: Allotment
    made: Result


@dataclass
class _Search:
    """The models that were measured. request: the budget."""

    found: Candidates
    measure: Measure
    steps: SavedSteps
    criteria: Sequence[KeptScores]
    request: Mapping[str, Any]
    seen: dict[str, float] = field(default_factory=dict)
    even: float = 0.0
    best: _Best | None = None

    def run(self, settings: SearchSettings, seed: int) -> None:
        """Measure so many models: the starts, then those in which one group keeps more, then moves."""
        draw, size = random.Random(seed), FIRST_MOVE
        with counted(settings.steps, "search", progress=settings.progress) as done:
            for allotment in chain(self._starts(), self._wider()):
                if len(self.seen) < settings.steps and self._measure(allotment) is not None:
                    done()
            while len(self.seen) < settings.steps:
                better = self._move(draw, size)
                if better is None:
                    break
                done()
                size = min(1.3 * size, LARGEST_MOVE) if better else max(0.95 * size, LEAST_MOVE)

    def plan(self, notes: Sequence[str]) -> Plan:
        """The plan of the best model; its reasons say what was measured."""
        assert self.best is not None
        made, name = self.best.made, self.measure.name
        text = (
            f"the search measured {len(self.seen)} small models after their repair: the {name} is "
            f"{self.best.value:.4g}, that of the even ratio {self.even:.4g}"
        )
        path, outputs = made.analysis.captured.path, made.analysis.results.paths
        return replace(made.plan, reasons=(*made.plan.reasons, text, *notes), path=path, outputs=outputs)

    def _starts(self) -> Iterator[Allotment]:
        """The even ratio by each criterion; then what the other scopes choose by the best of these."""
        groups = self.found.analysis.groups
        for number in range(len(self.criteria)):
            yield Allotment({}, {group.number: Ranking(number) for group in groups})
        assert self.best is not None
        rankings = self.best.allotment.rankings
        criterion = self.criteria[rankings[groups[0].number].criterion]
        for name in SCOPES:
            made = None if name in ("local", SEARCH) else self._cut({"scope": name, "importance": criterion})
            if made is not None:
                gone = removal_of(self.found.analysis, made.plan).removed
                kept = {group.number: group.size - int(gone[group.channels].sum()) for group in groups}
                yield Allotment(like(kept, groups), rankings)

    def _wider(self) -> Iterator[Allotment]:
        """The best one so far, but that one group keeps more, for each group in turn."""
        for group in self.found.analysis.groups:
            assert self.best is not None
            weights = self.best.allotment.weights
            lighter = {**weights, group.number: LIGHTER * weights.get(group.number, 1.0)}
            yield replace(self.best.allotment, weights=lighter)

    def _move(self, draw: random.Random, size: float) -> bool | None:
        """Measure a model near the best one. Returns True if it is better, None if no other one is found."""
        assert self.best is not None
        numbers = [group.number for group in self.found.analysis.groups]
        for _ in range(TRIES):
            better = self._measure(moved(self.best.allotment, numbers, len(self.criteria), size, draw))
            if better is not None:
                return better
        return None

    def _measure(self, allotment: Allotment) -> bool | None:
        """Measure the model of an allotment. Returns True if it is the best so far, None if it was measured before."""
        importance = MixedScores(self.criteria, allotment.rankings)
        made = self._cut({"scope": allotment.counts, "importance": importance})
        if made is None:
            return None
        gone = removal_of(self.found.analysis, made.plan).removed
        key = hashlib.blake2b(gone.tobytes(), digest_size=12).hexdigest()
        if key in self.seen:
            return None
        value = self.steps.get(key, lambda: {"value": self.measure.of(self.found.repaired(made))})["value"]
        if not self.seen:
            self.even = value
        self.seen[key] = value
        if self.best is None or self.measure.merit(value) > self.measure.merit(self.best.value):
            self.best = _Best(value, allotment, made)
            return True
        return False

    def _cut(self, choices: Mapping[str, Any]) -> Result | None:
        """The small model of a choice; None for all but the first where it cannot be made."""
        try:
            return self.found.cut(locking=not self.seen, **self.request, **choices)
        except (RewriteError, PlanError):
            if not self.seen:
                raise
            return None
