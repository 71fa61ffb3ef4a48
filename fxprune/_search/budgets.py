"""`pareto`: the score of the best small model of each budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn

from fxprune._repair import RepairSettings
from fxprune._search.candidates import Candidates, candidates_of, request_of
from fxprune._search.measure import Measure, measure_of
from fxprune._search.results import Pareto, ParetoPoint
from fxprune._search.samples import samples_of
from fxprune._search.steps import SavedSteps, Values, bar, run_of
from fxprune.arguments import checks_arguments
from fxprune.capture.process_state import public_call
from fxprune.capture.program import as_module
from fxprune.costs import cost_of
from fxprune.errors import InputError
from fxprune.files import PathLike
from fxprune.planning.budgets import budgets_of
from fxprune.planning.figures import counted, figures_of


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
    progress: bool = False,
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
        progress: True to show a progress bar.
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
    amounts = _checked(budgets)
    whole_figures = figures_of(module, example_inputs, (key,))
    limits = [budgets_of(whole_figures, {key: amount})[0].limit for amount in amounts]
    request, settings = request_of(module, example_inputs, options), RepairSettings(repair_mode)
    samples = None if repair is None else samples_of(module, repair, repair_inputs, judge=score is None)
    measure = measure_of(module, samples, score)
    about = run_of(module, measure, samples, options, key=key, budgets=amounts, mode=repair_mode)
    steps = SavedSteps(file, "fxprune.pareto-run/1", about)
    smallest = amounts[limits.index(min(limits))]
    found = candidates_of(request, {"keep": {key: smallest}}, samples, settings)
    whole = steps.get("original", lambda: {"value": measure.of(module)})["value"]
    points = []
    for amount in bar(amounts, "pareto", progress=progress):
        known = steps.get(str(amount), partial(_step, found, measure, example_inputs, key, amount))
        points.append(ParetoPoint(amount, **{**known, "met": bool(known["met"])}))
    return Pareto(key, measure.name, whole, tuple(points))


def _checked(budgets: Any) -> list[float | int | str]:
    """The budgets as a list. Raises `InputError` if there are none."""
    if isinstance(budgets, str) or not isinstance(budgets, Iterable):
        raise InputError("budgets must be a list", why=f"it is a {type(budgets).__name__}", do="pass (0.5, 0.3)")
    amounts = list(dict.fromkeys(budgets))
    if not amounts:
        raise InputError("there is no budget", why="the list is empty", do="pass for example budgets=(0.5, 0.3)")
    return amounts


def _step(found: Candidates, measure: Measure, example_inputs: Any, key: str, amount: float | int | str) -> Values:
    """The values of one small model."""
    made = found.cut(keep={key: amount})
    after = cost_of(made.analysis, made.removal, made.constants)
    (budget,) = budgets_of(figures_of(made.analysis.model, example_inputs, (key,)), {key: amount})
    kept = budget.of(figures_of(made.small, example_inputs, (key,)) | counted(after))
    return {
        "kept": kept / budget.full,
        "params": after.params,
        "bytes": after.bytes,
        "macs": after.macs,
        "value": measure.of(made.small),
        "repaired": None if found.samples is None else measure.of(found.repaired(made)),
        "met": kept <= budget.limit,
    }
