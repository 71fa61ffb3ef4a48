"""The paths that `transform` tries in turn, and the result that it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fxprune._attempt import Request, Result, UnprovenError, attempt
from fxprune._find import find
from fxprune.analysis.after_removal import shapes_after
from fxprune.analysis.findings import Findings
from fxprune.analysis.uses import Uses
from fxprune.capture.captured import FrontEnd
from fxprune.capture.mode_layers import FIXED_MODE
from fxprune.capture.trace_watch import changes_state
from fxprune.errors import CaptureError, FxpruneError, PlanError, RewriteError
from fxprune.fold import folds, make_plan
from fxprune.paths import Outcome, most_useful_error, try_in_turn, without_hooks
from fxprune.planning.choose import STATISTIC
from fxprune.planning.figures import TIMED

CLASS_SHARE = 0.9
"""The class is kept by default if the small model loses at least this share of what a graph would lose."""


WOULD_LOSE = "the class would lose"
"""The beginning of `why_not` where a graph was taken although the class could be kept."""


def first_result(request: Request, paths: Sequence[FrontEnd], *, may_give_up_class: bool) -> Result:
    """The result of the first path that gives one.

    The paths are tried in two groups: those that keep the class, and those that make a graph; first the group of the
    first path. All paths of a group are tried for the whole request. If none works, those that failed because a size
    could not be recounted are tried again, with the channels locked that cause the failure (not for a given plan, and
    not with `strict`). If neither group gives a result, the path with hooks is tried.

    may_give_up_class: True to take a graph instead of the class if too many channels are locked (see `CLASS_SHARE`), or
        the path with hooks if all are.

    Raises the most useful of the errors if there is no result.
    """
    trial = _Trial(request, paths)
    usual = without_hooks(paths)
    found: Outcome[Result] = Outcome()
    for keeps_class in dict.fromkeys(path.keeps_class for path in usual):
        group = [path for path in usual if path.keeps_class is keeps_class]
        found = trial.tried(group, found)
        if found.result is not None:
            break
    if found.result is not None and may_give_up_class and found.result.analysis.captured.keeps_class:
        found = trial.another_instead(found, [path for path in paths if path not in usual or not path.keeps_class])
    if found.result is None and found.model_runs and not _wrong(found):
        found = trial.tried([path for path in paths if path not in usual], found)
    if found.result is None:
        raise _shown(found)
    return replace(found.result, why_not={**request.why_not, **_why_not(found, found.result)})


class _Trial:
    """The attempts of one call of `transform`. A path is analysed once."""

    def __init__(self, request: Request, paths: Sequence[FrontEnd]) -> None:
        self.request, self.first = request, paths[0]
        self.analyses: dict[str, Findings] = dict(request.known)

    def tried(self, group: Sequence[FrontEnd], before: Outcome[Result]) -> Outcome[Result]:
        """The outcome of trying a group of paths, after that of other paths."""
        if before.errors and not before.model_runs:
            return before
        found = try_in_turn(group, self._whole, goes_on=self._goes_on, before=before)
        if found.result is None and self.request.plan is None and not self.request.call.strict:
            recountable = [path for path in group if isinstance(found.errors.get(path.name), RewriteError)]
            found = try_in_turn(recountable, self._locking, goes_on=self._goes_on, before=found)
        return found

    def another_instead(self, found: Outcome[Result], others: Sequence[FrontEnd]) -> Outcome[Result]:
        """The outcome with a graph as the result, if it loses clearly more parameters than the class does.

        A graph that does something else than the model, in one of its modes too, is taken only if the class can lose
        nothing, and one without its state never: its second call gives other numbers. If no graph can be made and the
        class can lose nothing, because the channels of a forward that decides by numbers are all held, the path with
        hooks is tried.
        """
        kept = found.get()
        held = [reason for reason in kept.plan.reasons if STATISTIC not in reason]  # which changes in a graph too
        if not held or self.request.plan is not None or not self._may_lose_more(kept):
            return found
        graphs = without_hooks(others)
        try:
            other = self.tried(graphs, Outcome())
            if other.result is None and kept.analysis.captured.real and not kept.plan:
                other = self.tried([path for path in others if path not in graphs], other)
        except PlanError:  # the request names groups that only the class has
            return found
        if other.result is None or _loss(kept) >= CLASS_SHARE * _loss(other.result):
            return found
        lost = _lost_by(other.result)
        if lost and (kept.plan or changes_state(lost)):
            more = f"a graph would lose {_loss(other.result) - _loss(kept)} parameters more, but {lost[0]}"
            plan = replace(kept.plan, reasons=(*kept.plan.reasons, more))
            return replace(found, result=replace(kept, plan=plan, more_by_graph=more))
        taken, name = other.result.analysis.captured, kept.analysis.captured.path
        instead = "the graph loses" if taken.has_graph else f'the path "{taken.path}" loses'
        why = CaptureError(
            f"{WOULD_LOSE} {_loss(kept)} parameters, {instead} {_loss(other.result)}",
            why="; ".join(kept.plan.reasons),
        )
        return Outcome(other.result, {name: why, **other.errors})

    def _whole(self, path: FrontEnd) -> Result:
        return attempt(self._analysis(path), self.request)

    def _locking(self, path: FrontEnd) -> Result:
        return attempt(self._analysis(path), self.request, locking=True)

    def _analysis(self, path: FrontEnd) -> Findings:
        if path.name not in self.analyses:
            self.analyses[path.name] = find(replace(self.request.call, path=path.name, prefer=None))
        return self.analyses[path.name]

    def _goes_on(self, path: FrontEnd, error: FxpruneError) -> bool:
        if isinstance(error, PlanError):  # the plan may fit the path that it was made on and no other
            return self.request.plan is not None and path is not self.first
        return isinstance(error, CaptureError | RewriteError | UnprovenError)

    def _may_lose_more(self, kept: Result) -> bool:
        """True if a graph may lose clearly more: if the request would, were no channels tied or held by forward's code.

        Also True if constants are folded, because a graph can take up constants in more places.
        """
        if folds(self.request.choices.get("bias"), self.request.choices.get("masks")):
            return True
        choices = self._without_measuring()
        if choices is None:
            return any("the budget is not met" in reason for reason in kept.plan.reasons)
        free = replace(self.analyses[kept.analysis.captured.path], uses=Uses())
        most = replace(kept, analysis=free, removal=make_plan(free, **choices).removal)
        return _loss(kept) < CLASS_SHARE * _loss(most)

    def _without_measuring(self) -> dict[str, Any] | None:
        """The choices but for what is measured on small models, which forward's code may be unable to run.

        None if nothing but a latency is limited.
        """
        choices = self.request.choices
        keep, multiple = choices.get("keep"), choices.get("round_to", 1)
        if keep is not None:
            keep = {key: amount for key, amount in keep.items() if key not in TIMED}
            if not keep:
                return None
        return {**choices, "keep": keep, "round_to": 1 if multiple == "auto" else multiple}


def _lost_by(result: Result) -> tuple[str, ...]:
    """Sentences about what a graph does otherwise than the model: state, backwards of its own, one of the two modes."""
    found = result.analysis
    return (*found.captured.lost, *(note for note in found.notes if note.startswith(FIXED_MODE)))


def _loss(result: Result) -> int:
    """The number of elements that the tensors lost. Parameters that a graph leaves out as unused do not count."""
    shapes = shapes_after(result.analysis, result.removal)
    return sum(tensor.numel() - math.prod(shapes[name]) for name, tensor in result.analysis.tensors.items())


def _wrong(found: Outcome[Result]) -> list[UnprovenError]:
    """The errors of paths that made a wrong model although its shapes were proven: fxprune has a mistake."""
    unproven = (error for error in found.errors.values() if isinstance(error, UnprovenError))
    return [error for error in unproven if not error.analysis.captured.real]


def _shown(found: Outcome[Result]) -> FxpruneError:
    """The error for the user if no path gave a result."""
    wrong = _wrong(found)
    if wrong:
        return wrong[0].diagnosed()
    error = most_useful_error(list(found.errors.values()))
    return error.shown() if isinstance(error, UnprovenError) else error


def _why_not(found: Outcome[Result], result: Result) -> dict[str, str]:
    """Name of a path that was tried and failed -> why, in one line."""
    return {
        path: "; ".join(part for part in (error.what, error.at, error.first_why) if part)
        for path, error in found.errors.items()
        if path != result.analysis.captured.path
    }
