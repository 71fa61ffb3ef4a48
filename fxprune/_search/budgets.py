"""`pareto`: the score of the best small model of each budget."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from fxprune._dropping import Shallow, asked_to_drop, budgets_left, without_branches
from fxprune._find import AnalyzeArguments
from fxprune._repair import RepairSettings
from fxprune._search.candidates import OTHERS, Candidates, candidates_of, request_of
from fxprune._search.measure import Measure, measure_of
from fxprune._search.results import Pareto, ParetoPoint
from fxprune._search.samples import samples_of
from fxprune._search.steps import SavedSteps, Values, run_of
from fxprune.arguments import checks_arguments
from fxprune.capture.process_state import public_call
from fxprune.capture.program import as_module
from fxprune.costs import cost, cost_of
from fxprune.errors import InputError, PlanError
from fxprune.files import PathLike
from fxprune.planning.budgets import Budget, budgets_of, checked_keys, place
from fxprune.planning.figures import counted, figures_of, measured_of
from fxprune.planning.scopes import SEARCH
from fxprune.progress import bar


@checks_arguments("score", "key", "repair_mode", "repair_inputs", "file", "progress")
@public_call()
def pareto(
    model: nn.Module,
    example_inputs: Any,
    score: Callable[[nn.Module], Any] | None = None,
    *,
    budgets: Sequence[float | int | str] = (0.9, 0.7, 0.5, 0.3, 0.15),
    key: str = "macs",
    repair: Iterable[Any] | None = None,
    repair_mode: str = "weights",
    repair_inputs: Callable[[Any], Any] | None = None,
    file: PathLike | None = None,
    progress: bool = True,
    drop: Any = (),
    **options: Any,
) -> Pareto:
    """The score against a cost: the small model of each budget, as it is cut and repaired.

    All of them are cut from the same analysis. Only the smallest is proven. The original is not changed.

    Args:
        model, example_inputs: as `fxprune.transform` takes them.
        score: a function from a model to a number of which more is better, such as its accuracy. It may change the
            model. Without it, the relative squared error of the outputs is measured, on samples of `repair` that are
            held out.
        budgets: what is kept of the cost, each as in `keep={key: budget}` of `fxprune.transform`.
        key: the cost: "macs", "params", "bytes" or another budget of `transform`.
        repair, repair_mode, repair_inputs: as in `fxprune.transform`: batches on which small models are repaired.
        file: a JSON file that is written after every step. If it is there, the run goes on from it. A file of a run
            with another model, other data or other options is refused.
        progress: False for no bar; there is one only where stderr is a terminal or a notebook.
        drop: residual branches that go whole in all of the small models, as in `fxprune.transform`; a budget counts
            from the original.
        options: importance, data, loss, ignore, round_to, exact, seed, scope, counts, min_channels, max_ratio, also,
            methods, strict, norms, outputs, path, prefer: as in `fxprune.transform`.

    Raises `InputError` for a score that raises or gives no finite number, and for wrong arguments; `FileError` for a
    file of another run; `PlanError` for a budget that makes no sense; and as `transform`.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> x, y = torch.randn(64, 4), torch.zeros(64, 2)
    >>> found = fxprune.pareto(net, x, lambda small: -(small(x) - y).square().mean(), budgets=(0.5, 0.25))
    >>> [point.macs for point in found.points]
    [1536, 768]
    """
    module = as_module(model, example_inputs)
    amounts = _checked(budgets, key)
    limits = _limits(module, example_inputs, amounts, key)
    _refuse_measured(options)
    shallow = _without(module, example_inputs, drop, options)
    request, settings = request_of(shallow.model, example_inputs, shallow.choices), RepairSettings(repair_mode)
    samples = None if repair is None else samples_of(module, repair, repair_inputs, judge=score is None)
    measure = measure_of(module, samples, score)
    dropped = {"drop": [one.name for one in shallow.dropped]} if shallow.dropped else {}
    about = run_of(module, measure, samples, options, key=key, budgets=amounts, mode=repair_mode, **dropped)
    steps = SavedSteps(file, "fxprune.pareto-run/1", about)
    smallest = amounts[limits.index(min(limits))]
    asked = CurveBudgets(module, shallow, example_inputs, key)
    with _in_words_of_pareto(key):
        found = candidates_of(request, asked.choice(smallest), samples, settings)
    found = replace(found, original=module) if shallow.dropped else found
    whole = steps.get("original", lambda: {"value": measure.of(module)})["value"]
    points = []
    for amount in bar(amounts, what="pareto", unit="model", show=progress):
        known = steps.get(str(amount), partial(_step, found, measure, asked, amount))
        points.append(ParetoPoint(amount, **{**known, "met": bool(known["met"])}))
    return Pareto(key, measure.name, whole, tuple(points))


def _checked(budgets: Any, key: str) -> list[float | int | str]:
    """The budgets as a list. Raises `InputError` if there are none, and `PlanError` for one that makes no sense."""
    if isinstance(budgets, str) or not isinstance(budgets, Iterable):
        raise InputError("budgets must be a list", why=f"it is a {type(budgets).__name__}", do="pass (0.5, 0.3)")
    given = list(budgets)
    if not given:
        raise InputError("there is no budget", why="the list is empty", do="pass for example budgets=(0.5, 0.3)")
    with _in_words_of_pareto(key):
        for amount in given:
            checked_keys({key: amount})
    return list(dict.fromkeys(given))


def _limits(model: nn.Module, example_inputs: Any, amounts: Sequence[float | int | str], key: str) -> list[float]:
    """The figure of each budget. Raises `PlanError` for one that makes no sense of this model."""
    whole = cost(model, example_inputs)
    figures = counted(whole) | {name: found[0] for name, found in measured_of([model], example_inputs, (key,)).items()}
    with _in_words_of_pareto(key):
        return [budgets_of(figures, {key: amount}, whole.uncounted)[0].limit for amount in amounts]


@contextlib.contextmanager
def _in_words_of_pareto(key: str) -> Iterator[None]:
    """Lets an error about `keep`, which `transform` has, name `budgets` and `key` instead, which `pareto` has."""
    try:
        yield
    except PlanError as error:
        before, _, after = place(key, "?").partition("'?'")
        if not (error.at.startswith(before) and error.at.endswith(after)):
            raise
        amount = error.at.removeprefix(before).removesuffix(after)
        at = f"budgets=[{amount}], key={key!r}"
        raise PlanError(error.what, at=at, why=error.why, do=error.do) from error.__cause__


@dataclass(frozen=True, eq=False)
class CurveBudgets:
    """The budgets of a call. shallow: the model that is cut, `model` or a copy of it without some branches."""

    model: nn.Module
    shallow: Shallow
    example_inputs: Any
    key: str

    def choice(self, amount: float | int | str) -> dict[str, Any]:
        """The options for a budget of the original, as one of the model that is cut."""
        if not self.shallow.dropped:
            return {"keep": {self.key: amount}}
        left = budgets_left({self.key: amount}, self.model, self.shallow.model, self.example_inputs)
        return {"keep": left} if left else {"ratio": 0.0}

    def budget(self, amount: float | int | str) -> Budget:
        """A budget of the original."""
        return budgets_of(figures_of(self.model, self.example_inputs, (self.key,)), {self.key: amount})[0]


def _without(model: nn.Module, example_inputs: Any, drop: Any, options: Mapping[str, Any]) -> Shallow:
    """The model without the branches that are named, and the options for it."""
    if not asked_to_drop({"drop": drop}):
        return Shallow(model, options, model)
    call = AnalyzeArguments(model, example_inputs, **{name: options[name] for name in OTHERS if name in options})
    shallow = without_branches(call, None, {**options, "drop": drop})
    return replace(shallow, choices={name: value for name, value in shallow.choices.items() if name != "ratio"})


def _refuse_measured(options: Mapping[str, Any]) -> None:
    """Raises `InputError` for a choice that takes a run of its own for each budget."""
    others = [name for name in ("depth", "search") if name in options]
    given = "scope='search'" if options.get("scope") == SEARCH else "".join(others[:1])
    if given:
        raise InputError(
            f"pareto takes no {given}",
            why="that measures many small models for each budget",
            do="call `fxprune.transform` for each budget, or drop branches that it has chosen with drop=",
        )


def _step(found: Candidates, measure: Measure, asked: CurveBudgets, amount: float | int | str) -> Values:
    """The values of one small model."""
    made, budget = found.cut(**asked.choice(amount)), asked.budget(amount)
    after = cost_of(made.analysis, made.removal, made.constants)
    kept = budget.of(figures_of(made.small, asked.example_inputs, (asked.key,)) | counted(after))
    return {
        "kept": kept / budget.full,
        "params": after.params,
        "bytes": after.bytes,
        "macs": after.macs,
        "value": measure.of(made.small),
        "repaired": None if found.samples is None else measure.of(found.repaired(made)),
        "met": kept <= budget.limit,
    }
