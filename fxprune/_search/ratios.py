"""`sensitivity`: what each group costs when a share of it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn

from fxprune._repair import RepairSettings
from fxprune._search.candidates import Candidates, candidates_of, request_of
from fxprune._search.measure import Measure, measure_of
from fxprune._search.results import Sensitivity, SensitivityPoint
from fxprune._search.samples import samples_of
from fxprune._search.steps import SavedSteps, Values, run_of
from fxprune.analysis.findings import Group
from fxprune.arguments import checks_arguments, fits
from fxprune.capture.process_state import public_call
from fxprune.capture.program import as_module
from fxprune.costs import cost_of
from fxprune.errors import InputError, PlanError
from fxprune.files import PathLike
from fxprune.planning.channels import removal_of
from fxprune.planning.limits import kept_count
from fxprune.planning.select import by_group, ignored_groups
from fxprune.progress import bar


@checks_arguments("score", "repair_mode", "repair_inputs", "file", "progress")
@public_call()
def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    score: Callable[[nn.Module], Any] | None = None,
    *,
    ratios: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    groups: Any = None,
    repair: Iterable[Any] | None = None,
    repair_mode: str = "weights",
    repair_inputs: Callable[[Any], Any] | None = None,
    file: PathLike | None = None,
    progress: bool = True,
    **options: Any,
) -> Sensitivity:
    """The score against the ratio, group by group: what the model loses if a share of one group's channels goes alone.

    Each small model is cut from the same analysis and scored, and with `repair` scored again after its repair. Only the
    first small model is proven. The original is not changed.

    Args:
        model, example_inputs: as `fxprune.transform` takes them.
        score: a function from a model to a number of which more is better, such as its accuracy. It may change the
            model. Without it, the relative squared error of the outputs is measured, on samples of `repair` that are
            held out.
        ratios: the shares of a group to remove, each in (0, 1).
        groups: a pattern or several (see `fxprune.names`), for the groups to look at; without it all.
        repair, repair_mode, repair_inputs: as in `fxprune.transform`: batches on which small models are repaired.
        file: a JSON file that is written after every step. If it is there, the run goes on from it. A file of a run
            with another model, other data or other options is refused.
        progress: False for no bar; there is one only where stderr is a terminal or a notebook.
        options: importance, data, loss, ignore, round_to, exact, seed, also, methods, strict, norms, outputs, path,
            prefer: as in `fxprune.transform`.

    Raises `InputError` for a score that raises or gives no finite number, and for wrong arguments; `FileError` for a
    file of another run; `PlanError` if no channel can be removed; and as `transform`.

    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> x, y = torch.randn(64, 4), torch.zeros(64, 2)
    >>> found = fxprune.sensitivity(net, x, lambda small: -(small(x) - y).square().mean(), ratios=(0.5, 0.75))
    >>> [(point.group, point.kept) for point in found.points]
    [('0:channels@0.weight[0]', 4), ('0:channels@0.weight[0]', 2)]
    """
    shares = _checked(ratios)
    if options.get("round_to") == "auto":
        raise PlanError("the widths of a ratio are looked at", why='round_to="auto" changes them', do="give a number")
    module = as_module(model, example_inputs)
    request, settings = request_of(module, example_inputs, options), RepairSettings(repair_mode)
    samples = None if repair is None else samples_of(module, repair, repair_inputs, judge=score is None)
    measure = measure_of(module, samples, score)
    about = run_of(module, measure, samples, options, ratios=shares, groups=groups, mode=repair_mode)
    steps = SavedSteps(file, "fxprune.sensitivity-run/1", about)
    found = candidates_of(request, {"ratio": shares[-1]}, samples, settings)
    looked_at = _groups(found, groups, options.get("ignore", ()))
    whole = steps.get("original", lambda: {"value": measure.of(module)})["value"]
    todo = [(group, share) for group in looked_at for share in shares]
    points = []
    for group, share in bar(todo, what="sensitivity", unit="model", show=progress):
        kept = kept_count(group.size, share, options.get("round_to", 1))
        if kept == group.size:
            known = {"kept": kept, "macs": 1.0, "value": whole, "repaired": None if samples is None else whole}
        else:
            known = steps.get(f"{group.key} {kept}", partial(_step, found, measure, group, share))
        points.append(SensitivityPoint(group.key, share, group.size, *_fields(known)))
    return Sensitivity(measure.name, whole, tuple(points))


def _fields(known: Values) -> tuple[Any, ...]:
    return known["kept"], known["macs"], known["value"], known["repaired"]


def _checked(ratios: Sequence[float]) -> list[float]:
    """The ratios in their order. Raises `InputError` if there are none, or one of them is no share."""
    if isinstance(ratios, str) or not isinstance(ratios, Iterable):
        raise InputError(
            "ratios must be a list of shares", why=f"it is a {type(ratios).__name__}", do="pass (0.3, 0.5)"
        )
    shares = list(ratios)
    wrong = [ratio for ratio in shares if not fits(ratio, float) or not 0 < ratio < 1]
    if wrong or not shares:
        why = f"got {wrong[0]!r}" if wrong else "there is none"
        raise InputError("a ratio must be a number between 0 and 1", why=why, do="pass for example ratios=(0.3, 0.5)")
    return sorted({float(ratio) for ratio in shares})


def _groups(found: Candidates, patterns: Any, ignore: Any) -> list[Group]:
    """The groups to look at. Raises `PlanError` for a pattern that names none."""
    stay = ignored_groups(found.analysis, ignore)
    chosen = set(range(len(found.analysis.groups)))
    if patterns is not None:
        named = [patterns] if isinstance(patterns, str | int) else patterns
        if isinstance(named, list | tuple | set | frozenset) and not named:
            raise PlanError(
                "groups names nothing", at=f"groups={patterns!r}", why="it is empty", do="leave it out for all"
            )
        chosen = set(by_group(found.analysis, dict.fromkeys(named, True), what="groups"))
    return [group for group in found.analysis.groups if group.number in chosen - stay]


def _step(found: Candidates, measure: Measure, group: Group, share: float) -> Values:
    """The values of one small model."""
    made = found.cut(ratio={group.number: share})
    before, after = found.whole.macs, cost_of(made.analysis, made.removal, made.constants).macs
    gone = int(removal_of(found.analysis, made.plan).removed[group.channels].sum())
    return {
        "kept": group.size - gone,
        "macs": None if not before or after is None else after / before,
        "value": measure.of(made.small),
        "repaired": None if found.samples is None else measure.of(found.repaired(made)),
    }
